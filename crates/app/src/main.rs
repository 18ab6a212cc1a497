//! The binary `seawall`.

/// Less CPU per request than the system's in two of three alternating runs; see ARCHITECTURE.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    seawall_app::cli::main()
}
