//! Steps that do something to files other than moving bytes.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use anyhow::bail;

use super::create;

/// Does the step, if it is one of these.
pub(crate) fn step(words: &[&str]) -> anyhow::Result<bool> {
    match *words {
        ["fsync", path] => File::options().write(true).open(path)?.sync_all()?,
        ["fdatasync", path] => File::options().write(true).open(path)?.sync_data()?,
        ["unlink", path] => fs::remove_file(path)?,
        ["remove-all", path] => fs::remove_dir_all(path)?,
        ["rename", from, to] => fs::rename(from, to)?,
        ["fail-unlink", path] => expect(libc::ENOENT, fs::remove_file(path))?,
        ["fail-rename", from, to] => expect(libc::ENOENT, fs::rename(from, to))?,
        ["fail-open", path] => expect(libc::ENOENT, File::open(path))?,
        // A descriptor that is for writing only.
        ["fail-read", path] => expect(libc::EBADF, create(path)?.read(&mut [0]))?,
        ["time-reads", path, count, size] => time_reads(path, count.parse()?, size.parse()?)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn expect<T>(errno: i32, result: io::Result<T>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        Err(error) => bail!("another error: {error}"),
        Ok(_) => bail!("no error"),
    }
}

/// Reads a file's beginning again and again, and says how long that took.
fn time_reads(path: &str, count: u32, size: usize) -> io::Result<()> {
    let file = File::open(path)?;
    let mut buffer = vec![0; size];
    let mut taken = Duration::ZERO;
    for _ in 0..count {
        // Each on its own: another process may have the CPU in between, for longer than all of them take.
        let began = Instant::now();
        file.read_exact_at(&mut buffer, 0)?;
        taken += began.elapsed();
    }
    println!("reads took {}", taken.as_secs_f64());
    Ok(())
}
