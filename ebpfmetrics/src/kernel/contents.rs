use std::{fs, io, ops::Deref, path::Path};

/// The contents of a file that never changes.
pub(crate) enum Contents {
    /// Memory of the kernel, mapped into this process.
    Mapped(Mapped),
    /// A copy.
    Copied(Vec<u8>),
}

impl Contents {
    /// Maps the file if the kernel supports that (for its BTF since 6.15), else copies it.
    pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        Mapped::new(path).map(Self::Mapped).or_else(|_| fs::read(path).map(Self::Copied))
    }
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => mapped.0,
            Self::Copied(bytes) => bytes,
        }
    }
}

/// A mapping, removed on drop. The slice must not outlive it.
pub(crate) struct Mapped(&'static [u8]);

impl Mapped {
    fn new(path: &Path) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};

        let file = fs::File::open(path)?;
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        #[expect(unsafe_code, reason = "reading it 4 KiB at a time takes 1,400 system calls")]
        // SAFETY: the mapping is new, only this value refers to it, and it exists until drop.
        // The file never changes while the kernel runs.
        unsafe {
            let start =
                mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, &file, 0)?;
            Ok(Self(std::slice::from_raw_parts(start.cast(), length)))
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "the counterpart of mmap")]
        // SAFETY: it was mapped with this address and length, and no borrow outlives self.
        unsafe {
            let _ = rustix::mm::munmap(self.0.as_ptr().cast_mut().cast(), self.0.len());
        }
    }
}

/// Returns the memory to the system that malloc retains after the kernel's BTF was parsed.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no crate wraps malloc_trim")]
    // SAFETY: malloc_trim takes no pointer and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
