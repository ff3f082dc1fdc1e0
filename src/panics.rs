//! Panics: a bug ends the program, a library's answer to a shortage does not.
//!
//! A panic outside of [`catch`] is a bug: the hook logs it with a backtrace and aborts, the supervisor restarts the
//! program, and Recorders continue. But some libraries also panic when the system has no descriptor, thread or memory
//! mapping left. A thread that calls such a library does so in [`catch`], gets the panic as an error and retries later.
//! Invariant: the main loop catches nothing.

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use log::error;

use crate::text::shown;

thread_local! {
    /// Whether this thread is in `catch`.
    static CATCHES: Cell<bool> = const { Cell::new(false) };
    /// The last panic there, as the hook saw it.
    static CAUGHT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Installs the hook.
pub fn install_hook() {
    std::panic::set_hook(Box::new(|panic| {
        if CATCHES.get() {
            CAUGHT.set(Some(panic.to_string().replace('\n', " ")));
            return;
        }
        let thread = thread::current();
        error!("bug in thread {}: {panic}\n{}", thread.name().unwrap_or("?"), Backtrace::force_capture());
        std::process::abort();
    }));
}

/// Calls `call`, and turns a panic into an error of one line. What `call` was changing must not be used afterwards.
///
/// # Errors
/// The panic's message and place.
pub fn catch<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CATCHES.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    CATCHES.set(outer);
    result.map_err(|_| {
        let text = CAUGHT.take().unwrap_or_else(|| "panicked".to_owned());
        format!("a library failed: {}", shown(&text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caught_panic_is_an_error_and_the_thread_continues() {
        assert_eq!(catch(|| 1), Ok(1));
        for _ in 0..2 {
            let failed: Result<(), String> = catch(|| panic!("no descriptor\nleft"));
            assert!(failed.unwrap_err().starts_with("a library failed: "));
        }
        assert!(!CATCHES.get());
    }
}
