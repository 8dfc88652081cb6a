//! How far a pull is: a bar for each layer on a terminal, else a line for each step.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::podctl::{Error, Output};

/// The layers that are shown.
pub(super) struct Bars {
    /// Nothing without a terminal.
    area: Option<MultiProgress>,
    bars: HashMap<String, ProgressBar>,
    /// Without a terminal: what was said last about each.
    said: HashMap<String, String>,
}

impl Bars {
    pub(super) fn new(output: &Output) -> Self {
        let area = output.is_watched().then(MultiProgress::new);
        Self { area, bars: HashMap::new(), said: HashMap::new() }
    }

    /// Shows a file on its way to the daemon; the function is to be told how much has gone.
    pub(super) fn upload(&mut self, size: u64) -> impl FnMut(u64) + Send + 'static {
        let bar = self.area.as_ref().map(|area| {
            let bar = area.add(ProgressBar::new(size).with_style(style(true)));
            bar.set_prefix("archive");
            bar.set_message("Sending");
            bar
        });
        if let Some(bar) = &bar {
            self.bars.insert("archive".to_owned(), bar.clone());
        }
        move |sent| {
            if let Some(bar) = &bar {
                bar.set_position(sent);
            }
        }
    }

    /// Shows layers as the daemon describes them.
    pub(super) fn show(&mut self, layers: &[Value], output: &mut Output) -> Result<(), Error> {
        for layer in layers {
            let text = |name: &str| layer[name].as_str().unwrap_or_default().to_owned();
            let number = |name: &str| layer[name].as_u64().unwrap_or_default();
            let (id, phase) = (text("id"), text("phase"));
            let Some(area) = &self.area else {
                let before = self.said.insert(id.clone(), phase.clone());
                if before.as_ref() != Some(&phase) && phase != "Waiting" {
                    output.note(format_args!("{id}: {phase}"))?;
                }
                continue;
            };
            let total = number("total");
            let bar = self.bars.entry(id.clone()).or_insert_with(|| {
                let bar = area.add(ProgressBar::new(total).with_style(style(total > 0)));
                bar.set_prefix(id);
                bar
            });
            bar.set_length(total);
            bar.set_position(number("current"));
            bar.set_message(phase);
        }
        Ok(())
    }

    /// Leaves everything as it stands.
    pub(super) fn finish(&mut self) {
        for bar in self.bars.values() {
            bar.abandon();
        }
    }
}

fn style(has_length: bool) -> ProgressStyle {
    let template = if has_length {
        "{prefix:12} {msg:14} [{bar:30}] {binary_bytes:>10}/{binary_total_bytes}"
    } else {
        "{prefix:12} {msg}"
    };
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_malformed| ProgressStyle::default_bar()).progress_chars("=> ")
}
