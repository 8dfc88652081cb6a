//! Changes on disk that must survive a power cut, or not be there at all.
//!
//! Whatever promises something (a whole blob, a whole layer, a name) is written elsewhere, synced,
//! and only then renamed into place.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use super::error::{Error, failed_to};

/// Waits until a file's content is on disk.
pub(super) fn sync(file: &File, path: &Path) -> Result<(), Error> {
    step(path)?;
    file.sync_all().map_err(failed_to("sync", path))?;
    #[cfg(test)]
    power::synced(path);
    Ok(())
}

/// Waits until everything on the file system of `file` is on disk: for many files at once, which
/// one by one would take minutes.
pub(super) fn sync_all(file: &File, path: &Path) -> Result<(), Error> {
    step(path)?;
    rustix::fs::syncfs(file).map_err(failed_to("sync", path))?;
    #[cfg(test)]
    power::all_synced(path);
    Ok(())
}

/// Renames, and makes the new name survive.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    step(to)?;
    fs::rename(from, to).map_err(failed_to("create", to))?;
    #[cfg(test)]
    power::renamed(from, to);
    let parent = to.parent().unwrap_or(to);
    let synced = File::open(parent).and_then(|parent| parent.sync_all());
    synced.map_err(failed_to("sync", parent))
}

/// Puts a file in place whole: `new` is where it is written first.
pub(super) fn replace(new: &Path, path: &Path, content: &[u8]) -> Result<(), Error> {
    step(new)?;
    fs::write(new, content).map_err(failed_to("write", new))?;
    let file = File::open(new).map_err(failed_to("open", new))?;
    sync(&file, new)?;
    rename(new, path)
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    step(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed_to("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Where tests cut the power.
#[cfg_attr(not(test), expect(clippy::unnecessary_wraps, reason = "only tests cut the power"))]
pub(super) fn step(path: &Path) -> Result<(), Error> {
    #[cfg(test)]
    power::step(path).map_err(failed_to("reach", path))?;
    #[cfg(not(test))]
    let _ = path;
    Ok(())
}

/// A power cut: from one operation on none succeeds, and what was not synced is lost.
#[cfg(test)]
pub(super) mod power {
    use std::{
        collections::HashSet,
        fs, io,
        path::{Path, PathBuf},
        sync::{Mutex, MutexGuard, PoisonError},
    };

    /// Of the one test that cuts the power; what others do is not below its directory.
    static STATE: Mutex<Option<State>> = Mutex::new(None);

    struct State {
        dir: PathBuf,
        left: usize,
        steps: usize,
        synced: HashSet<PathBuf>,
    }

    fn state() -> MutexGuard<'static, Option<State>> {
        STATE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Operations below `dir` count from now on, and fail after `left` of them.
    pub(crate) fn cut_after(dir: &Path, left: usize) {
        let synced = files(dir).into_iter().collect();
        *state() = Some(State { dir: dir.to_owned(), left, steps: 0, synced });
    }

    /// The operations since, and the end of this. What was not synced is emptied.
    pub(crate) fn restore() -> usize {
        let state = state().take().expect("the power was cut");
        for file in files(&state.dir) {
            if !state.synced.contains(&file) {
                let length = fs::metadata(&file).map_or(0, |metadata| metadata.len());
                // As XFS and ext4 do: the length is there, the content is not.
                fs::write(&file, vec![0; usize::try_from(length).unwrap_or(0)]).unwrap();
            }
        }
        state.steps
    }

    pub(super) fn step(path: &Path) -> io::Result<()> {
        let mut state = state();
        let Some(state) = state.as_mut().filter(|state| path.starts_with(&state.dir)) else {
            return Ok(());
        };
        if state.left == 0 {
            return Err(io::Error::other("the power is cut"));
        }
        state.left -= 1;
        state.steps += 1;
        Ok(())
    }

    pub(super) fn synced(path: &Path) {
        with(path, |state| {
            state.synced.insert(path.to_owned());
        });
    }

    pub(super) fn all_synced(path: &Path) {
        with(path, |state| state.synced = files(&state.dir).into_iter().collect());
    }

    pub(super) fn renamed(from: &Path, to: &Path) {
        with(to, |state| {
            let moved: Vec<_> = state
                .synced
                .iter()
                .filter_map(|path| {
                    let rest = path.strip_prefix(from).ok()?;
                    Some(if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) })
                })
                .collect();
            state.synced.retain(|path| !path.starts_with(from));
            state.synced.extend(moved);
        });
    }

    fn with(path: &Path, change: impl FnOnce(&mut State)) {
        if let Some(state) = state().as_mut().filter(|state| path.starts_with(&state.dir)) {
            change(state);
        }
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![dir.to_owned()];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    left.push(entry.path());
                } else if kind.is_file() {
                    found.push(entry.path());
                }
            }
        }
        found
    }
}
