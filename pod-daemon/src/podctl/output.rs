//! Everything that podctl prints goes through here.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write},
};

use super::Error;

/// The terminal, or what stands for it.
pub struct Output {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    colours: bool,
    terminal: bool,
}

/// How a word is meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tone {
    Plain,
    Good,
    Busy,
    Bad,
}

impl Output {
    /// Standard output and error of this process; in colours if that is a terminal.
    pub fn of_process() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            colours: wanted && io::stdout().is_terminal(),
            terminal: io::stderr().is_terminal(),
        }
    }

    /// Any two writers, without colours.
    pub fn new(out: impl Write + 'static, err: impl Write + 'static) -> Self {
        Self { out: Box::new(out), err: Box::new(err), colours: false, terminal: false }
    }

    /// Reports that not even the runtime could be started, and returns the exit code.
    pub fn cannot_start(&mut self, error: &io::Error) -> u8 {
        // There is nowhere left to say that this could not be said.
        self.error(error).ok();
        1
    }

    /// Whether somebody watches standard error, so that things may move there.
    pub(super) fn is_watched(&self) -> bool {
        self.terminal
    }

    /// Prints text as it is.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Error> {
        self.bytes(text.as_bytes())
    }

    /// Prints a line.
    pub(super) fn line(&mut self, line: impl fmt::Display) -> Result<(), Error> {
        self.text(&format!("{line}\n"))
    }

    /// Prints bytes as they are, at once.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).and_then(|()| self.out.flush()).map_err(Error::Output)
    }

    /// Prints bytes to standard error.
    pub(super) fn error_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.err.write_all(bytes).and_then(|()| self.err.flush()).map_err(Error::Output)
    }

    /// Prints a line to standard error.
    pub(super) fn note(&mut self, line: impl fmt::Display) -> Result<(), Error> {
        self.error_bytes(format!("{line}\n").as_bytes())
    }

    /// Reports a failure.
    pub(super) fn error(&mut self, error: &dyn fmt::Display) -> Result<(), Error> {
        self.note(format_args!("error: {error}"))
    }

    /// Prints clap's help where help goes and its errors where errors go.
    pub(super) fn usage(&mut self, error: &clap::Error) -> Result<u8, Error> {
        let text = error.render();
        let text = if self.colours { text.ansi().to_string() } else { text.to_string() };
        if error.use_stderr() {
            self.error_bytes(text.as_bytes())?;
        } else {
            self.text(&text)?;
        }
        Ok(u8::try_from(error.exit_code()).unwrap_or(2))
    }

    /// The word in the colour of its tone, where colours are shown.
    pub(super) fn tint(&self, word: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Busy => "33",
            Tone::Bad => "31",
            Tone::Plain => return word.to_owned(),
        };
        if self.colours { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("colours", &self.colours).finish_non_exhaustive()
    }
}
