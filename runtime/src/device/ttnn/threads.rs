//! A thread for each chip, which does what it is given one after the other.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// The way to the thread of a chip, whose state is `S`.
pub(super) struct Jobs<S>(Sender<Job<S>>);

/// The thread of a chip. It ends when this is dropped, with what it was given until then done.
pub(super) struct ChipThread<S> {
    jobs: Option<Arc<Jobs<S>>>,
    thread: Option<JoinHandle<()>>,
}

/// A thread has ended: it panicked in something that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended;

impl<S: 'static> ChipThread<S> {
    /// A thread of this name with this state.
    pub(super) fn start(name: String, mut state: S) -> std::io::Result<Self>
    where
        S: Send,
    {
        let (jobs, work) = channel::<Job<S>>();
        let run = move || work.into_iter().for_each(|job| job(&mut state));
        let thread = std::thread::Builder::new().name(name).spawn(run)?;
        Ok(Self { jobs: Some(Arc::new(Jobs(jobs))), thread: Some(thread) })
    }

    /// The way to it. It stays open as long as somebody holds it.
    pub(super) fn jobs(&self) -> &Arc<Jobs<S>> {
        self.jobs.as_ref().expect("it is there until the thread is dropped")
    }
}

impl<S> Drop for ChipThread<S> {
    fn drop(&mut self) {
        self.jobs = None;
        // What it holds goes with it, so that it is gone when this returns.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl<S: 'static> Jobs<S> {
    /// Has something done for which nobody waits.
    pub(super) fn post(&self, job: impl FnOnce(&mut S) + Send + 'static) -> Result<(), Ended> {
        self.0.send(Box::new(job)).map_err(|_| Ended)
    }

    /// Has something done and waits for it.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let (answer, answered) = channel();
        // Nobody is left to hear it when the asker's own thread is gone.
        self.post(move |state| drop(answer.send(job(state))))?;
        answered.recv().map_err(|_| Ended)
    }
}

/// The order of what pairs of chips do together.
///
/// A chip that sends waits for the one that receives, and the other way round, in the order in which they were told to. If
/// two pairs were told in different orders they could wait for each other for ever; so a pair is told both halves before
/// the next pair is told anything. Then the pair that was told first on the whole board can always go on.
#[derive(Default)]
pub(super) struct Order(Mutex<()>);

/// The end of a transfer whose thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Sender,
    Receiver,
}

impl Order {
    /// Has one chip send what another one receives, and waits until the first has done its part. `receive` is called only
    /// when something was sent.
    pub(super) fn hand_over<S: 'static, E: Send + 'static>(
        &self,
        from: &Jobs<S>,
        to: &Jobs<S>,
        send: impl FnOnce(&mut S) -> Result<(), E> + Send + 'static,
        receive: impl FnOnce(&mut S) + Send + 'static,
    ) -> Result<Result<(), E>, Side> {
        let (verdict, of_sender) = channel();
        let (answer, answered) = channel();
        let sending = move |state: &mut S| {
            let sent = send(state);
            if sent.is_ok() {
                let _ = verdict.send(());
            }
            let _ = answer.send(sent);
        };
        // A sender that has nothing to say has sent nothing.
        let receiving = move |state: &mut S| {
            if of_sender.recv().is_ok() {
                receive(state);
            }
        };
        {
            // A panic between the two leaves nothing half done: a half that is never told is a half that has failed.
            let _order = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            to.post(receiving).map_err(|Ended| Side::Receiver)?;
            from.post(sending).map_err(|Ended| Side::Sender)?;
        }
        answered.recv().map_err(|_| Side::Sender)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What a thread did, in order.
    type Log = Vec<String>;

    fn thread(name: &str) -> ChipThread<Log> {
        ChipThread::start(name.into(), Log::new()).unwrap()
    }

    fn log(thread: &ChipThread<Log>) -> Log {
        thread.jobs().ask(|log| log.clone()).unwrap()
    }

    /// Transfers that many threads order between all chips at the same time: no half of one waits for ever for the other.
    #[test]
    fn pairs_of_chips_never_wait_for_each_other_in_a_circle() {
        const CHIPS: usize = 4;
        let chips: Arc<Vec<_>> = Arc::new((0..CHIPS).map(|chip| thread(&format!("chip {chip}"))).collect());
        let order = Arc::new(Order::default());
        let (done, all_done) = channel();
        for asker in 0..6 {
            let (chips, order, done) = (Arc::clone(&chips), Arc::clone(&order), done.clone());
            std::thread::spawn(move || {
                for i in 0..2000 {
                    let from = (asker + i) % CHIPS;
                    let to = (from + 1 + i % (CHIPS - 1)) % CHIPS;
                    let send = move |log: &mut Log| -> Result<(), ()> {
                        log.push(format!("{asker}.{i} to {to}"));
                        Ok(())
                    };
                    let receive = move |log: &mut Log| log.push(format!("{asker}.{i} from {from}"));
                    order.hand_over(chips[from].jobs(), chips[to].jobs(), send, receive).unwrap().unwrap();
                }
                done.send(()).unwrap();
            });
        }
        for _ in 0..6 {
            // As much time as nobody needs, so that a circle is told.
            all_done.recv_timeout(Duration::from_secs(60)).expect("chips wait for each other in a circle");
        }
        let logs: Vec<Log> = chips.iter().map(log).collect();
        assert_eq!(logs.iter().map(Vec::len).sum::<usize>(), 2 * 6 * 2000);
    }

    #[test]
    fn nothing_is_received_that_was_not_sent() {
        let (a, b, order) = (thread("a"), thread("b"), Order::default());
        let receive = |log: &mut Log| log.push("received".into());
        let refused = order.hand_over(a.jobs(), b.jobs(), |_| Err("no way"), receive);
        assert_eq!(refused, Ok(Err("no way")));
        let panics = |_: &mut Log| -> Result<(), ()> { std::panic::resume_unwind(Box::new(())) };
        assert_eq!(order.hand_over(a.jobs(), b.jobs(), panics, receive), Err(Side::Sender));
        assert_eq!(log(&b), [""; 0]);
        // Where nobody can receive nothing is sent.
        let sends = |log: &mut Log| -> Result<(), ()> {
            log.push("sent".into());
            Ok(())
        };
        assert_eq!(order.hand_over(b.jobs(), a.jobs(), sends, receive), Err(Side::Receiver));
        assert_eq!(log(&b), [""; 0]);
        assert_eq!(a.jobs().ask(|_| ()), Err(Ended));
        let c = thread("c");
        assert_eq!(order.hand_over(b.jobs(), c.jobs(), sends, receive), Ok(Ok(())));
        assert_eq!((log(&b), log(&c)), (vec!["sent".to_owned()], vec!["received".to_owned()]));
    }

    #[test]
    fn what_a_thread_holds_is_gone_when_it_is_dropped() {
        struct Slow(Arc<Mutex<u32>>);
        impl Drop for Slow {
            fn drop(&mut self) {
                *self.0.lock().unwrap() += 1;
            }
        }
        let count = Arc::new(Mutex::new(0));
        let thread = ChipThread::start("a chip".into(), Slow(Arc::clone(&count))).unwrap();
        thread.jobs().post(|slow| *slow.0.lock().unwrap() += 10).unwrap();
        drop(thread);
        assert_eq!(*count.lock().unwrap(), 11);
    }
}
