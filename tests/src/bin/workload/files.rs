//! Steps that do something to files other than moving bytes.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use anyhow::bail;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};

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

/// Reads a file's beginning again and again, and says how long that took, and how much of a CPU.
fn time_reads(path: &str, count: u32, size: usize) -> io::Result<()> {
    let file = File::open(path)?;
    let mut buffer = vec![0; size];
    let (began, cpu) = (Instant::now(), cpu_time()?);
    for _ in 0..count {
        file.read_exact_at(&mut buffer, 0)?;
    }
    let cpu = cpu_time()?.saturating_sub(cpu);
    println!("reads took {} {}", began.elapsed().as_secs_f64(), cpu.as_secs_f64());
    Ok(())
}

/// CPU time of this thread.
fn cpu_time() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let time = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(time.num_microseconds().unsigned_abs()))
}
