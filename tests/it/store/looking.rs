//! Looking: in turns, without a thread for those who wait, and beside those whose looks are long.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use assetwatch::store::Blocking;
use futures_util::future::join;

use super::*;

/// Work that waits until the test runs it.
#[derive(Clone, Default)]
struct Work(Arc<Mutex<VecDeque<Piece>>>);

type Piece = Box<dyn FnOnce() + Send>;

impl Work {
    fn blocking(&self) -> Blocking {
        let work = self.clone();
        Blocking::new(move |piece| work.0.lock().unwrap().push_back(piece))
    }

    fn waits(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn run(&self) {
        while let Some(piece) = { self.0.lock().unwrap().pop_front() } {
            piece();
        }
    }

    /// Lets `future` come as far as it can without work being done.
    async fn begin<T>(&self, future: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T>
    where
        T: Send + 'static,
    {
        let task = tokio::spawn(future);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        task
    }
}

#[tokio::test]
async fn who_waits_for_a_look_takes_no_thread_and_looks_at_nothing_when_he_leaves() {
    let base = Base::new().await;
    base.add(&["ast_1"]).await;
    let path = base.store.path().to_owned();
    let work = Work::default();
    let opening = work.begin({
        let blocking = work.blocking();
        async move { Store::open_with(&path, blocking).await }
    });
    let opening = opening.await;
    work.run();
    let store = opening.await.unwrap().unwrap();
    let look = |store: &Store| {
        let store = store.clone();
        async move { store.watches(Filter::default()).await }
    };
    let first = work.begin(look(&store)).await;
    let (second, third) = join(work.begin(look(&store)), work.begin(look(&store))).await;
    assert_eq!(work.waits(), 1, "a look at a time");
    let beside = work.begin(look(&store.beside())).await;
    assert_eq!(work.waits(), 2, "and one beside it");
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    work.run();
    assert_eq!(first.await.unwrap().unwrap().len(), 1);
    assert_eq!(beside.await.unwrap().unwrap().len(), 1);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(work.waits(), 1, "the third one's; the second has left");
    work.run();
    assert_eq!(third.await.unwrap().unwrap().len(), 1);
}
