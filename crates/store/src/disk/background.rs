//! Work on files beside the caller's.

use std::io;
use std::thread::JoinHandle;

/// Work that was begun. Dropped, it is waited for: nothing of ours may touch a directory that is no longer ours.
#[derive(Debug)]
pub struct Background<T>(Work<T>);

#[derive(Debug)]
enum Work<T> {
    Done(io::Result<T>),
    Beside(JoinHandle<io::Result<T>>),
    Taken,
}

impl<T> Background<T> {
    /// Work that is done already.
    pub const fn of(result: io::Result<T>) -> Self {
        Self(Work::Done(result))
    }

    /// Work on a thread of its own.
    pub(super) fn beside(name: &str, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Self
    where
        T: Send + 'static,
    {
        match std::thread::Builder::new().name(name.into()).spawn(work) {
            Ok(thread) => Self(Work::Beside(thread)),
            Err(error) => Self::of(Err(error)),
        }
    }

    /// True if [`Self::wait`] would not wait.
    #[must_use]
    pub fn is_done(&self) -> bool {
        !matches!(&self.0, Work::Beside(thread) if !thread.is_finished())
    }

    /// What came of it.
    ///
    /// # Errors
    /// What the work says.
    pub fn wait(mut self) -> io::Result<T> {
        match std::mem::replace(&mut self.0, Work::Taken) {
            Work::Done(result) => result,
            Work::Beside(thread) => thread.join().unwrap_or_else(|_| Err(io::Error::other("the work panicked"))),
            Work::Taken => unreachable!("it is waited for by value, once"),
        }
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        if let Work::Beside(thread) = std::mem::replace(&mut self.0, Work::Taken) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_is_waited_for() {
        assert_eq!(Background::of(Ok(7)).wait().unwrap(), 7);
        let (go_on, told) = std::sync::mpsc::sync_channel::<()>(1);
        let work = Background::beside("work", move || told.recv().map(|()| 8).map_err(io::Error::other));
        assert!(!work.is_done());
        go_on.send(()).unwrap();
        assert_eq!(work.wait().unwrap(), 8);
        let work: Background<()> = Background::beside("work", || panic!("as planned"));
        assert!(work.wait().unwrap_err().to_string().contains("panicked"));
        let (done, seen) = std::sync::mpsc::sync_channel(1);
        drop(Background::beside("work", move || done.send(()).map_err(io::Error::other)));
        assert!(seen.try_recv().is_ok(), "it was waited for");
    }
}
