//! Somewhere to swap to.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// A swap file in use; given up when dropped.
pub struct SwapFile(tempfile::TempPath);

impl SwapFile {
    /// In a directory on a disk; `bytes` is a multiple of the page size.
    pub fn new(directory: &Path, bytes: usize) -> io::Result<Self> {
        let (mut file, path) = tempfile::NamedTempFile::new_in(directory)?.into_parts();
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        Self::format(&mut file, bytes)?;
        let name = CString::new(path.to_str().ok_or(io::ErrorKind::InvalidInput)?)?;
        #[expect(unsafe_code, reason = "swapon(2)")]
        // SAFETY: a string that outlives the call.
        let result = unsafe { libc::swapon(name.as_ptr(), 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(path)) }
    }

    /// As mkswap(8): a page that says how many follow. Without holes, so written.
    fn format(file: &mut File, bytes: usize) -> io::Result<()> {
        let page = rustix::param::page_size();
        let mut header = vec![0_u8; page];
        header[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
        header[1028..1032].copy_from_slice(&((bytes / page - 1) as u32).to_ne_bytes());
        header[page - 10..].copy_from_slice(b"SWAPSPACE2");
        file.write_all(&header)?;
        file.write_all(&vec![0; bytes - page])?;
        file.sync_all()
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        let name = CString::new(self.0.to_str().unwrap()).unwrap();
        #[expect(unsafe_code, reason = "swapoff(2)")]
        // SAFETY: a string that outlives the call.
        unsafe {
            libc::swapoff(name.as_ptr());
        }
    }
}
