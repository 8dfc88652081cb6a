//! Whose a series is.

use std::ops::Range;

/// Values of the labels that the source of a family implies.
#[derive(Clone, Copy)]
pub(super) enum Base<'a> {
    /// As they are.
    Values(&'a [&'a str]),
    /// As they are written.
    Written(&'a Written),
}

/// Labels as the text formats have them. A page has a container's in a hundred places: to find the names
/// and to look for what has to be escaped would take longer than all else that is written there.
pub(super) struct Written {
    text: String,
    /// Where the values are.
    values: Vec<Range<usize>>,
}

impl<'a> Base<'a> {
    /// The value of the label at `index`.
    pub(super) fn get(self, index: usize) -> Option<&'a str> {
        match self {
            Self::Values(values) => values.get(index).copied(),
            Self::Written(written) => Some(&written.text[written.values.get(index)?.clone()]),
        }
    }

    /// The values of all labels, in their order.
    pub(super) fn values(self) -> impl Iterator<Item = &'a str> {
        (0..).map_while(move |index| self.get(index))
    }
}

impl Written {
    /// Writes labels whose values are names of Kubernetes' objects, which have no character that would
    /// have to be escaped.
    pub(super) fn names(labels: &[&str], values: &[&str]) -> Self {
        // With `=`, quotes and a comma.
        let length = labels.iter().chain(values).map(|text| text.len() + 2).sum();
        let text = String::with_capacity(length);
        let mut written = Self { text, values: Vec::with_capacity(values.len()) };
        for (label, value) in labels.iter().zip(values) {
            debug_assert!(!value.contains(['\\', '\n', '"']), "{value}");
            let text = &mut written.text;
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(label);
            text.push_str("=\"");
            written.values.push(text.len()..text.len() + value.len());
            text.push_str(value);
            text.push('"');
        }
        written
    }

    /// All of them.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_has_the_same_values() {
        let values = ["default", "web", ""];

        let written = Written::names(&["namespace", "pod", "container"], &values);

        assert_eq!(written.text(), r#"namespace="default",pod="web",container="""#);
        assert!(Base::Written(&written).values().eq(Base::Values(&values).values()));
        assert_eq!(Base::Written(&written).get(3), None);
    }
}
