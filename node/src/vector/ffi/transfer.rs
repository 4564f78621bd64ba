//! Index bytes on their way in or out: FAISS' callbacks, and how they find what they work on.

use std::any::Any;
use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;

use crate::vector::VectorError;

/// Why a transfer of index bytes ended early.
#[derive(Debug)]
pub(in crate::vector) enum WriteFailure {
    /// The caller's sink or source failed.
    Io(io::Error),
    /// FAISS failed.
    Vector(VectorError),
}

impl From<VectorError> for WriteFailure {
    fn from(error: VectorError) -> Self {
        Self::Vector(error)
    }
}

pub(super) enum Direction<'a> {
    Write(&'a mut dyn FnMut(&[u8]) -> io::Result<()>),
    Read(&'a mut dyn FnMut(&mut [u8]) -> io::Result<usize>),
}

/// What the callbacks of the current thread work on: FAISS gives them no context pointer.
pub(super) struct Transfer<'a> {
    direction: Direction<'a>,
    error: Option<io::Error>,
    panic: Option<Box<dyn Any + Send>>,
}

thread_local! {
    /// The transfer under way on this thread; null while there is none.
    static TRANSFER: Cell<*mut c_void> = const { Cell::new(ptr::null_mut()) };
}

impl Transfer<'_> {
    /// Runs a FAISS call whose callbacks use `direction`.
    pub(super) fn run(
        direction: Direction<'_>,
        call: impl FnOnce() -> Result<(), VectorError>,
    ) -> Result<(), WriteFailure> {
        let mut transfer = Transfer { direction, error: None, panic: None };
        // Restored rather than cleared, so that a sink may itself write an index.
        let outer = TRANSFER.replace((&raw mut transfer).cast());
        let outcome = call();
        TRANSFER.set(outer);
        if let Some(panic) = transfer.panic {
            resume_unwind(panic);
        }
        match transfer.error {
            Some(error) => Err(WriteFailure::Io(error)),
            None => Ok(outcome?),
        }
    }

    /// Runs `step` on the transfer of this thread; whether it went well. Panics do not cross into C++.
    fn step(step: impl FnOnce(&mut Transfer<'_>) -> io::Result<()>) -> bool {
        let transfer = TRANSFER.get().cast::<Transfer<'_>>();
        // SAFETY: either null, or set by `run` on this thread to a `Transfer` that is alive until `run` has cleared it and
        // that nothing else touches while the FAISS call in `run` (and so this callback) is under way.
        let Some(transfer) = (unsafe { transfer.as_mut() }) else { return false };
        if transfer.error.is_some() || transfer.panic.is_some() {
            return false;
        }
        match catch_unwind(AssertUnwindSafe(|| step(transfer))) {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                transfer.error = Some(error);
                false
            }
            Err(panic) => {
                transfer.panic = Some(panic);
                false
            }
        }
    }
}

/// FAISS' `fwrite`: gives the number of items written; fewer than asked is an error to FAISS.
pub(super) unsafe extern "C" fn write_piece(bytes: *const c_void, size: usize, items: usize) -> usize {
    let Some(total) = size.checked_mul(items) else { return 0 };
    if total == 0 {
        return items;
    }
    // SAFETY: FAISS passes `size * items` readable bytes, which live until this returns.
    let piece = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), total) };
    let written = Transfer::step(|transfer| match &mut transfer.direction {
        Direction::Write(sink) => sink(piece),
        Direction::Read(_) => Err(io::Error::other("a write during a read")),
    });
    if written { items } else { 0 }
}

/// FAISS' `fread`: gives the number of items read; fewer than asked is an error to FAISS.
pub(super) unsafe extern "C" fn read_piece(bytes: *mut c_void, size: usize, items: usize) -> usize {
    let Some(total) = size.checked_mul(items) else { return 0 };
    if total == 0 {
        return items;
    }
    // SAFETY: FAISS passes `size * items` writable bytes of its own (vectors resized, so initialised), not read elsewhere.
    let mut rest = unsafe { std::slice::from_raw_parts_mut(bytes.cast::<u8>(), total) };
    let filled = Transfer::step(|transfer| {
        let Direction::Read(source) = &mut transfer.direction else {
            return Err(io::Error::other("a read during a write"));
        };
        while !rest.is_empty() {
            match source(rest)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => rest = &mut rest[count..],
            }
        }
        Ok(())
    });
    if filled { items } else { 0 }
}
