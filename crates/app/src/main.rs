//! The binary `seawall`.

fn main() -> std::process::ExitCode {
    seawall_app::cli::main()
}
