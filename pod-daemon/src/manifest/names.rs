//! The shapes that Kubernetes prescribes for names, labels and keys.
//!
//! Every check returns what is wrong in words, or nothing.

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;
const PORT_NAME_MAX: usize = 15;

/// A verdict: `None` is good, otherwise what the value must be.
pub(super) type Verdict = Option<&'static str>;

/// DNS-1123 label: container names, volume names, namespaces, hostnames.
pub(super) fn label(name: &str) -> Verdict {
    if name.len() > LABEL_MAX {
        return Some("must be no more than 63 characters");
    }
    (!is_label(name)).then_some(
        "must consist of lower case letters, digits and `-`, and start and end with a letter or \
         digit",
    )
}

/// DNS-1123 subdomain: names of pods and config maps.
pub(super) fn subdomain(name: &str) -> Verdict {
    if name.len() > SUBDOMAIN_MAX {
        return Some("must be no more than 253 characters");
    }
    (!name.split('.').all(is_label)).then_some(
        "must consist of lower case letters, digits, `-` and `.`, and each part must start and \
         end with a letter or digit",
    )
}

/// A domain that names are looked up in: like a subdomain, and underscores may be part of it.
pub(super) fn search_domain(name: &str) -> Verdict {
    if name.len() > SUBDOMAIN_MAX {
        return Some("must be no more than 253 characters");
    }
    (!name.split('.').all(|part| is_label(&part.replace('_', "a")))).then_some(
        "must consist of lower case letters, digits, `-`, `_` and `.`, and each part must start \
         and end with a letter, digit or `_`",
    )
}

/// Key of a label or annotation: `name` or `prefix.example/name`.
pub(super) fn qualified(key: &str) -> Verdict {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix
        && subdomain(prefix).is_some()
    {
        return Some("must have a DNS name before the `/`");
    }
    if name.is_empty() { Some("must have a name part") } else { label_value(name) }
}

/// Value of a label.
pub(super) fn label_value(value: &str) -> Verdict {
    if value.len() > LABEL_MAX {
        return Some("must be no more than 63 characters");
    }
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good = value.bytes().all(inner)
        && [value.bytes().next(), value.bytes().next_back()]
            .into_iter()
            .flatten()
            .all(|b| b.is_ascii_alphanumeric());
    (!good).then_some(
        "must consist of letters, digits, `-`, `_` and `.`, and start and end with a letter or \
         digit",
    )
}

/// Name of a port (an IANA service name).
pub(super) fn port(name: &str) -> Verdict {
    if name.len() > PORT_NAME_MAX {
        return Some("must be no more than 15 characters");
    }
    let good =
        is_label(name) && name.bytes().any(|b| b.is_ascii_lowercase()) && !name.contains("--");
    (!good).then_some(
        "must consist of lower case letters, digits and single `-`, with at least one letter, and \
         start and end with a letter or digit",
    )
}

/// Name of an environment variable.
pub(super) fn variable(name: &str) -> Verdict {
    let good = !name.is_empty() && name.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'=');
    (!good).then_some("must consist of printable ASCII characters other than `=`")
}

/// Key of a config map, which becomes a file name.
pub(super) fn config_key(key: &str) -> Verdict {
    if key.len() > SUBDOMAIN_MAX {
        return Some("must be no more than 253 characters");
    }
    let good = !key.is_empty()
        && key != "."
        && !key.starts_with("..")
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    (!good).then_some("must consist of letters, digits, `-`, `_` and `.`, and not start with `..`")
}

fn is_label(name: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.bytes().all(|b| edge(b) || b == b'-')
        && name.bytes().next().is_some_and(edge)
        && name.bytes().next_back().is_some_and(edge)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: fn(&str) -> Verdict, good: &[&str], bad: &[&str]) {
        for name in good {
            assert_eq!(rule(name), None, "{name}");
        }
        for name in bad {
            assert!(rule(name).is_some(), "{name}");
        }
    }

    #[test]
    fn labels_and_subdomains() {
        let (longest, too_long) = ("a".repeat(63), "a".repeat(64));
        check(label, &["a", "0", "web-1", &longest], &["", "-a", "a-", "A", "a.b", "ä", &too_long]);
        check(subdomain, &["a", "a.b-c.0", &too_long], &["", ".", "a..b", "a.-b", "a_b", "A"]);
        assert!(subdomain(&"a".repeat(254)).is_some());
    }

    #[test]
    fn keys_and_values() {
        check(
            qualified,
            &["app", "App_1.x", "app.kubernetes.io/name"],
            &["", "/a", "a/", "a/b/c", "-a", "a b", "A.b/c"],
        );
        check(label_value, &["", "1", "A_b.c-D"], &["-", "a.", "ü", "a b"]);
        check(config_key, &["a", ".a", "A_b-c.txt"], &["", ".", "..", "..a", "a/b", "ü"]);
        check(variable, &["A", "my.var-1", "a b"], &["", "A=B", "ü", "a\n"]);
        check(port, &["http", "a1-b"], &["", "80", "a--b", "-a", "Http", "sixteen-long-abc"]);
    }
}
