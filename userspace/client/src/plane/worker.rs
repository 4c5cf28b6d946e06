//! A thread for the data plane: its calls block, and must happen one after the other.

use std::sync::mpsc;

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::PlaneError;
use super::kernel::Kernel;

type Job = Box<dyn FnOnce(&mut Kernel) + Send>;

/// The way to the thread. Jobs run in the order in which they are given.
#[derive(Clone, Debug)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread. It belongs to the caller's tokio runtime, since readers of events register there.
    pub fn start(kernel: Kernel) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("data-plane".to_owned()).spawn(move || {
            let _runtime = runtime.enter();
            let mut kernel = kernel;
            while let Ok(job) = queue.recv() {
                job(&mut kernel);
            }
        })?;
        Ok(Self { jobs })
    }

    /// Queues a job at once; the answer is there when it is done.
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Kernel) -> T + Send + 'static,
    ) -> BoxFuture<'static, Result<T, PlaneError>> {
        let (answer, answered) = oneshot::channel();
        let sent = self.jobs.send(Box::new(move |kernel| {
            // Nobody waits any more: the daemon is ending.
            let _ = answer.send(job(kernel));
        }));
        Box::pin(async move {
            let ended =
                || PlaneError("the data plane's thread has ended; restart ghostwire-client".to_owned());
            sent.map_err(|_| ended())?;
            answered.await.map_err(|_| ended())
        })
    }
}
