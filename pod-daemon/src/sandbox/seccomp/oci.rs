//! Profiles of the node's administrator, in the format of the OCI runtime specification.
//!
//! A key that is not understood is an error: a filter that is not what its author believes is worse
//! than none.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{
    Error,
    abi::{Abi, OURS},
    policy::{Action, Compare, Condition, Policy, Rule, Table},
};

/// The specification's names.
const ARCHITECTURES: [&str; 21] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

/// `EPERM`, which the specification sets where a profile does not.
const DEFAULT_ERRNO: u32 = 1;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Reads a profile.
pub(super) fn parse(text: &str) -> Result<Policy, Error> {
    let document: Document = serde_json::from_str(text).map_err(Error::Parse)?;
    // Hints about how the kernel is to run the filter; none changes what it decides.
    let known =
        ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];
    if let Some(flag) = document.flags.iter().find(|flag| !known.contains(&flag.as_str())) {
        return Err(unsupported(format!("has the flag {flag}, which Podscope does not know")));
    }
    let otherwise = action(&document.default_action, document.default_errno_ret)?;
    let is_unknown = |name: &&String| !ARCHITECTURES.contains(&name.as_str());
    if let Some(name) = document.architectures.iter().find(is_unknown) {
        return Err(unsupported(format!("has the architecture {name}, which there is not")));
    }
    let mut tables = Vec::new();
    for abi in OURS {
        let is_listed = document.architectures.iter().any(|name| name == abi.name);
        // The machine's own needs no mention.
        if is_listed || abi.audit == OURS[0].audit {
            tables.push(table(*abi, &document, otherwise)?);
        }
    }
    // x32 and whatever is not listed do not get past a filter that was not written for them.
    Ok(Policy { tables, foreign: Action::ABSENT })
}

fn table(abi: Abi, document: &Document, otherwise: Action) -> Result<Table, Error> {
    let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    let mut last = None;
    for entry in &document.syscalls {
        let then = action(&entry.action, entry.errno_ret)?;
        last = last.max(entry.names.iter().filter_map(|name| abi.number(name)).max());
        let conditions =
            entry.args.iter().map(condition).collect::<Result<Vec<Condition>, Error>>()?;
        // Says nothing, and must not stand in for what others say of the call.
        if then == otherwise {
            continue;
        }
        let distinct: BTreeSet<u32> = conditions.iter().map(|one| one.argument).collect();
        // All must be met, but for several about one argument, of which one is enough. That is how
        // the field reads profiles, and so how they are written.
        let rules: Vec<Rule> = if distinct.len() == conditions.len() {
            vec![Rule { when: conditions, then }]
        } else {
            conditions.into_iter().map(|one| Rule { when: vec![one], then }).collect()
        };
        for name in &entry.names {
            // Calls that this architecture does not have are in most profiles.
            let Some(number) = abi.number(name) else { continue };
            calls.entry(number).or_default().extend(rules.iter().cloned());
        }
    }
    for rules in calls.values_mut() {
        // A rule without conditions stands for all calls, wherever it is written.
        if let Some(always) = rules.iter().find(|rule| rule.when.is_empty()) {
            *rules = vec![always.clone()];
        }
    }
    // What is newer than anything that the author knew was not refused by him, and programs that try a
    // new call first take no other answer for its absence.
    let beyond = match otherwise {
        Action::Allow | Action::Log | Action::Trace(_) => None,
        _ => last.map(|last| (last + 1, Action::ABSENT)),
    };
    Ok(Table { abi, calls, otherwise, beyond })
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, Error> {
    let data = u16::try_from(errno.unwrap_or(DEFAULT_ERRNO))
        .map_err(|_overflow| unsupported("has an errno that is out of range".to_owned()))?;
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(data),
        "SCMP_ACT_TRACE" => Action::Trace(data),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => {
            return Err(unsupported(format!("has the action {other}, which Podscope cannot do")));
        }
    })
}

fn condition(argument: &Argument) -> Result<Condition, Error> {
    if argument.index > 5 {
        return Err(unsupported(format!(
            "has a condition on argument {}; the last is 5",
            argument.index
        )));
    }
    let mut condition = Condition {
        argument: argument.index,
        mask: u64::MAX,
        compare: Compare::Equal,
        value: argument.value,
    };
    condition.compare = match argument.op.as_str() {
        "SCMP_CMP_EQ" => Compare::Equal,
        "SCMP_CMP_NE" => Compare::NotEqual,
        "SCMP_CMP_LT" => Compare::Less,
        "SCMP_CMP_LE" => Compare::LessOrEqual,
        "SCMP_CMP_GE" => Compare::GreaterOrEqual,
        "SCMP_CMP_GT" => Compare::Greater,
        "SCMP_CMP_MASKED_EQ" => {
            condition.mask = argument.value;
            condition.value = argument.value_two;
            Compare::Equal
        }
        other => {
            return Err(unsupported(format!("compares by {other}, which Podscope does not know")));
        }
    };
    Ok(condition)
}

fn unsupported(problem: String) -> Error {
    Error::Unsupported(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_says_what_is_allowed() {
        let policy = parse(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", "SCMP_ARCH_X32"],
                "syscalls": [
                    {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
                     "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"},
                              {"index": 0, "value": 10, "op": "SCMP_CMP_EQ"}]}]}"#,
        )
        .unwrap();
        let [table] = policy.tables.as_slice() else { panic!("{policy:?}") };
        assert_eq!(table.otherwise, Action::Errno(38));
        assert_eq!(table.calls.len(), 2);
        let socket = &table.calls[&OURS[0].number("socket").unwrap()];
        assert_eq!(socket.len(), 2, "either of the two families");
        assert!(socket.iter().all(|rule| rule.then == Action::Errno(13)));
    }

    /// What a profile of that default and those entries says of a call without arguments.
    fn decides(default: &str, entries: &str, call: u32) -> Action {
        let text = format!(r#"{{"defaultAction": "{default}", "syscalls": [{entries}]}}"#);
        let table = parse(&text).unwrap().tables.remove(0);
        match (table.calls.get(&call), table.beyond) {
            (Some(rules), _) => rules[0].then,
            (None, Some((first, action))) if call >= first => action,
            _ => table.otherwise,
        }
    }

    #[test]
    fn what_says_the_default_again_stands_in_for_nothing() {
        let entries = r#"{"names": ["socket"], "action": "SCMP_ACT_ERRNO",
                          "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_EQ"}]},
                         {"names": ["socket", "connect"], "action": "SCMP_ACT_ALLOW"}"#;
        let socket = OURS[0].number("socket").unwrap();
        assert_eq!(decides("SCMP_ACT_ALLOW", entries, socket), Action::Errno(1));
    }

    #[test]
    fn calls_that_the_author_did_not_know_are_not_there() {
        let entries = r#"{"names": ["read", "statx"], "action": "SCMP_ACT_ALLOW"}"#;
        let [statx, clone3] = ["statx", "clone3"].map(|name| OURS[0].number(name).unwrap());
        assert_eq!(decides("SCMP_ACT_ERRNO", entries, statx - 1), Action::Errno(1));
        for call in [statx + 1, clone3, OURS[0].end - 1] {
            assert_eq!(decides("SCMP_ACT_ERRNO", entries, call), Action::ABSENT);
        }
        assert_eq!(decides("SCMP_ACT_LOG", entries, clone3), Action::Log);
        // Who names what is new is taken at his word.
        let newer = format!(r#"{entries}, {{"names": ["clone3"], "action": "SCMP_ACT_ERRNO"}}"#);
        assert_eq!(decides("SCMP_ACT_ERRNO", &newer, clone3), Action::Errno(1));
    }

    #[test]
    fn the_machines_own_architecture_needs_no_mention() {
        let profile = |names: &str| {
            parse(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "architectures": {names}}}"#))
        };
        for names in ["[]", r#"["SCMP_ARCH_S390"]"#] {
            let tables = profile(names).unwrap().tables;
            assert_eq!(tables.len(), 1, "{names}");
            assert_eq!(tables[0].abi.audit, OURS[0].audit);
        }
        let error = profile(r#"["SCMP_ARCH_X86-64"]"#).unwrap_err();
        assert!(error.to_string().contains("SCMP_ARCH_X86-64"), "{error}");
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (text, problem) in [
            ("{}", "defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#, "listenerPath"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"],
                    "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
                "argument 6",
            ),
        ] {
            let error = parse(text).unwrap_err();
            let text = format!("{error} {:?}", std::error::Error::source(&error));
            assert!(text.contains(problem), "{text}");
        }
    }
}
