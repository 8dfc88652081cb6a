//! Execs that fail, each in a way of its own.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt as _, symlink},
    ptr,
};

use anyhow::{Context as _, bail};

use super::name_of;

/// Longer than one argument may be: 32 pages.
const TOO_LONG: usize = 32 * 4096;

/// Calls execve `count` times, each of which fails in the same way, and says how.
pub(super) fn to_exec(how: &str, count: usize) -> anyhow::Result<()> {
    let path = format!("/exec-{how}");
    let mut argument = "x".to_owned();
    // Whoever has it open for writing.
    let mut writer = None;
    match how {
        "missing" | "missing-at" => {}
        "denied" => make(&path, 0o644)?,
        "format" => make(&path, 0o755)?,
        "interpreter" => {
            fs::write(&path, "#!/nowhere\n")?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        "long" => {
            make(&path, 0o755)?;
            argument = "x".repeat(TOO_LONG);
        }
        "busy" => {
            make(&path, 0o755)?;
            writer = Some(File::options().append(true).open(&path)?);
        }
        "loop" => symlink(&path, &path).context("make a link to itself")?,
        _ => bail!("unknown step"),
    }
    let (path, argument) = (CString::new(path)?, CString::new(argument)?);
    let arguments = [argument.as_ptr(), ptr::null()];
    let environment: [*const libc::c_char; 1] = [ptr::null()];
    let mut error = io::Error::from_raw_os_error(0);
    for _ in 0..count {
        // SAFETY: the path and both lists end in a null; on success there is no way back.
        unsafe {
            if how == "missing-at" {
                libc::syscall(
                    libc::SYS_execveat,
                    libc::AT_FDCWD,
                    path.as_ptr(),
                    arguments.as_ptr(),
                    environment.as_ptr(),
                    0,
                );
            } else {
                libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            }
        }
        error = io::Error::last_os_error();
    }
    drop(writer);
    println!("failed {} {count}", name_of(&error));
    Ok(())
}

/// A file that is no program.
fn make(path: &str, mode: u32) -> io::Result<()> {
    fs::write(path, [1, 2, 3, 4])?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}
