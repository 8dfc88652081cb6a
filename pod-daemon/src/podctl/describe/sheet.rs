//! Titles and values, indented by what they belong to and aligned with their neighbours.

const INDENT: usize = 2;
const GAP: usize = 2;

/// A description in the making.
#[derive(Default)]
pub(in super::super) struct Sheet {
    lines: Vec<Line>,
    depth: usize,
    /// Number of sections so far: lines are aligned with those of the same section.
    sections: usize,
    section: usize,
}

struct Line {
    depth: usize,
    section: usize,
    title: String,
    values: Vec<String>,
}

impl Sheet {
    /// A title with one value.
    pub(in super::super) fn field(&mut self, title: &str, value: &str) {
        self.push(title, vec![value.to_owned()]);
    }

    /// A title with one value, if there is one.
    pub(in super::super) fn some(&mut self, title: &str, value: Option<impl Into<String>>) {
        if let Some(value) = value.map(Into::into).filter(|value: &String| !value.is_empty()) {
            self.push(title, vec![value]);
        }
    }

    /// A title with values below each other; `<none>` if there are none.
    pub(in super::super) fn list(&mut self, title: &str, values: Vec<String>) {
        let none = || vec!["<none>".to_owned()];
        self.push(title, if values.is_empty() { none() } else { values });
    }

    /// A title with values below each other, if there are any.
    pub(in super::super) fn some_list(&mut self, title: &str, values: Vec<String>) {
        if !values.is_empty() {
            self.push(title, values);
        }
    }

    /// A title and, below it, what `fill` adds, aligned by itself.
    pub(in super::super) fn section(&mut self, title: &str, fill: impl FnOnce(&mut Self)) {
        self.push(title, Vec::new());
        let outer = self.section;
        self.sections += 1;
        self.section = self.sections;
        self.depth += 1;
        fill(self);
        self.depth -= 1;
        self.section = outer;
    }

    /// A title with a value and, below it, what `fill` adds, aligned with it.
    pub(in super::super) fn headed(
        &mut self,
        title: &str,
        value: &str,
        fill: impl FnOnce(&mut Self),
    ) {
        self.field(title, value);
        self.depth += 1;
        fill(self);
        self.depth -= 1;
    }

    fn push(&mut self, title: &str, values: Vec<String>) {
        let Self { depth, section, .. } = *self;
        self.lines.push(Line { depth, section, title: title.to_owned(), values });
    }

    /// The text.
    pub(in super::super) fn finish(self) -> String {
        let mut widths = vec![0; self.sections + 1];
        for line in self.lines.iter().filter(|line| !line.values.is_empty()) {
            widths[line.section] = line.width().max(widths[line.section]);
        }
        let mut text = String::new();
        for line in &self.lines {
            let mut start = format!("{:1$}{2}:", "", line.depth * INDENT, line.title);
            if line.values.is_empty() {
                text.push_str(&start);
                text.push('\n');
            }
            for value in line.values.iter().flat_map(|value| value.split('\n')) {
                let width = widths[line.section] + GAP;
                text.push_str(format!("{start:width$}{value}").trim_end());
                text.push('\n');
                start.clear();
            }
        }
        text
    }
}

impl Line {
    fn width(&self) -> usize {
        self.depth * INDENT + self.title.chars().count() + 1
    }
}
