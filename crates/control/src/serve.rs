//! The admin port: a bounded number of connections, each with an owner, none held open by a slow head.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::Admin;

/// Connections at the same time; more wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 256;

/// A request's head must be complete after this long.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (no descriptor left, say) the next is tried after this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn run(
    admin: &Admin,
    listener: TcpListener,
    stop: CancellationToken,
    grace: Duration,
    cut: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let service = TowerToHyperService::new(admin.router());
    let tasks = &admin.0.tasks;
    loop {
        let (place, stream) = tokio::select! {
            () = stop.cancelled() => break,
            next = next(&places, &listener) => match next {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the admin port");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service.clone());
        let (stop, cut) = (stop.clone(), cut.clone());
        let serving = async move {
            let mut connection = std::pin::pin!(connection);
            // A client that goes away or talks nonsense has had its answer, or will not read one.
            let _ = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            drop(place);
        };
        tasks.spawn(async move {
            cut.run_until_cancelled(serving).await;
        });
    }
    admin.0.stop.cancel();
    tasks.close();
    let mut ended = std::pin::pin!(tokio::time::timeout(grace, tasks.wait()));
    let in_time = tokio::select! {
        biased;
        ended = ended.as_mut() => ended.is_ok(),
        () = cut.cancelled() => false,
    };
    if !in_time {
        tracing::warn!(left = tasks.len(), "admin calls did not end in time");
        if cut.is_cancelled() {
            let _ = ended.await;
        }
    }
}

/// A place, then a connection: never one without the other.
async fn next(
    places: &Arc<Semaphore>,
    listener: &TcpListener,
) -> std::io::Result<(tokio::sync::OwnedSemaphorePermit, TcpStream)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((place, stream))
}
