//! `$(VAR)` in commands, arguments and environment values, by Kubernetes' rules.

use std::collections::BTreeMap;

/// Replaces every `$(NAME)` that `env` defines.
///
/// `$$` stands for one `$`, so `$$(NAME)` is never expanded. References that are undefined or
/// incomplete stay as they are, as does a `$` before anything else. Values are not expanded again.
pub fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        rest = if let Some(escaped) = after.strip_prefix('$') {
            expanded.push('$');
            escaped
        } else if let Some((name, tail)) =
            after.strip_prefix('(').and_then(|reference| reference.split_once(')'))
        {
            match env.get(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.extend(["$(", name, ")"]),
            }
            tail
        } else {
            expanded.push('$');
            after
        };
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        let env = [("A", "1"), ("B", "$(A)"), ("EMPTY", ""), ("ü", "umlaut")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(A)"),
            ("$(EMPTY)", ""),
            ("$(UNDEFINED)", "$(UNDEFINED)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$A", "$A"),
            ("$", "$"),
            ("$$", "$"),
            ("$(A", "$(A"),
            ("$(A$(A)", "$(A$(A)"),
            ("$()", "$()"),
            ("$(ü)€$ü", "umlaut€$ü"),
            ("${A}", "${A}"),
        ] {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }
}
