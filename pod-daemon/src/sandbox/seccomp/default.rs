//! The profile of every container that asks for no other.
//!
//! The lists (`calls`) are the field's default. What is Podscope's own: `ENOSYS` for what the lists do
//! not know, so that libraries fall back to older calls, and `EPERM` for what they know and refuse;
//! nothing at all for x32; and no way around the rules for sockets on 32-bit x86.

mod calls;

use std::collections::BTreeMap;

use self::calls::{ALWAYS, ALWAYS_32, BY_CAPABILITY, NEVER};
use super::{
    super::Capabilities,
    abi::{Abi, OURS},
    policy::{Action, Compare, Condition, Policy, Rule, Table},
};

const REFUSED: Action = Action::Errno(1); // EPERM
const UNKNOWN: Action = Action::ABSENT;

/// Flags of `clone` that make namespaces.
const NAMESPACES: u32 = 0x7e02_0000;

/// The values of `personality` that change nothing of consequence: Linux's own, with uname as of
/// 2.6, with 32-bit addresses, both, and the question for the current one.
const PERSONALITIES: [u32; 5] = [0, 8, 0x20000, 0x20008, 0xffff_ffff];

/// Families of sockets that reach out of the pod, or code of the kernel that needs no reaching.
const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;

/// The policy for a process that has `capabilities`.
pub(super) fn policy(capabilities: Capabilities) -> Policy {
    Policy { tables: OURS.iter().map(|abi| table(*abi, capabilities)).collect(), foreign: UNKNOWN }
}

/// The policy for one ABI.
fn table(abi: Abi, capabilities: Capabilities) -> Table {
    let mut calls = BTreeMap::new();
    let mut set = |name: &str, rules: Vec<Rule>| {
        if let Some(number) = abi.number(name) {
            calls.insert(number, rules);
        }
    };
    for name in NEVER {
        set(name, vec![Rule::always(REFUSED)]);
    }
    for (_, names) in BY_CAPABILITY {
        for name in names {
            set(name, vec![Rule::always(REFUSED)]);
        }
    }
    for name in ALWAYS.into_iter().chain(ALWAYS_32) {
        set(name, vec![Rule::always(Action::Allow)]);
    }
    let namespaces =
        Condition { argument: 0, mask: u64::from(NAMESPACES), compare: Compare::Equal, value: 0 };
    set("clone", vec![Rule { when: vec![namespaces], then: Action::Allow }, Rule::always(REFUSED)]);
    // Its flags are behind a pointer. The C library takes ENOSYS as an invitation to use `clone`.
    set("clone3", vec![Rule::always(UNKNOWN)]);
    set(
        "personality",
        PERSONALITIES
            .map(|value| Rule {
                when: vec![Condition::word(0, Compare::Equal, value)],
                then: Action::Allow,
            })
            .into_iter()
            .chain([Rule::always(REFUSED)])
            .collect(),
    );
    set(
        "socket",
        vec![
            Rule {
                when: [AF_ALG, AF_VSOCK]
                    .map(|family| Condition::word(0, Compare::NotEqual, family))
                    .to_vec(),
                then: Action::Allow,
            },
            Rule::always(REFUSED),
        ],
    );
    for (capability, names) in BY_CAPABILITY {
        if Capabilities::named(capability).is_some_and(|one| capabilities.contains(one)) {
            for name in names {
                set(name, vec![Rule::always(Action::Allow)]);
            }
        }
    }
    Table { abi, calls, otherwise: UNKNOWN, beyond: None }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{
        super::{
            super::DEFAULT_CAPABILITIES,
            abi::{AARCH64, X86, X86_64},
        },
        *,
    };

    /// The field's default: names by the word that begins the line.
    fn field() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
        include_str!("../../../tests/fixtures/seccomp_default_x86_64.txt")
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| {
                let mut words = line.split_whitespace();
                let first = words.next().unwrap().trim_end_matches(':');
                (first.trim_start_matches("CAP_"), words.collect())
            })
            .collect()
    }

    #[test]
    fn the_lists_are_those_of_the_fields_default() {
        let mut field = field();
        assert_eq!(field.remove("ALWAYS").unwrap(), BTreeSet::from(ALWAYS));
        assert_eq!(field.remove("NEVER").unwrap(), BTreeSet::from(NEVER));
        let conditional = field.remove("args").unwrap();
        assert_eq!(conditional, BTreeSet::from(["clone", "personality", "socket"]));
        let ours: BTreeMap<_, BTreeSet<_>> = BY_CAPABILITY
            .into_iter()
            .map(|(capability, names)| (capability, names.iter().copied().collect()))
            .collect();
        assert_eq!(field, ours);
    }

    #[test]
    fn every_call_of_the_field_is_decided_as_there() {
        let decide = |capabilities, name: &str| {
            let table = table(X86_64, capabilities);
            let number = X86_64.number(name)?;
            Some(table.calls.get(&number).unwrap_or_else(|| panic!("no rule for {name}")).clone())
        };
        let field = field();
        for name in &field["ALWAYS"] {
            let rules = decide(Capabilities::NONE, name).unwrap();
            assert_eq!(rules, [Rule::always(Action::Allow)], "{name}");
        }
        for name in field["NEVER"].iter().filter(|name| X86_64.number(name).is_some()) {
            assert_eq!(decide(Capabilities::ALL, name).unwrap(), [Rule::always(REFUSED)], "{name}");
        }
        for (capability, names) in &field {
            let Some(capability) = Capabilities::named(capability) else { continue };
            for name in names.iter().filter(|name| X86_64.number(name).is_some()) {
                let with = decide(capability, name).unwrap();
                assert_eq!(with, [Rule::always(Action::Allow)], "{name}");
                let refusal = if *name == "clone3" { UNKNOWN } else { REFUSED };
                let without = decide(Capabilities::NONE, name).unwrap();
                assert_eq!(without.last(), Some(&Rule::always(refusal)), "{name}");
            }
        }
        // What neither knows is unknown, so that libraries fall back.
        let number = X86_64.number("cachestat").unwrap();
        let table = table(X86_64, DEFAULT_CAPABILITIES);
        assert!(!table.calls.contains_key(&number));
        assert_eq!(table.otherwise, UNKNOWN);
    }

    #[test]
    fn every_name_is_a_call_of_some_architecture() {
        let known =
            |name: &&str| [X86_64, X86, AARCH64].iter().any(|abi| abi.number(name).is_some());
        let all = ALWAYS.into_iter().chain(ALWAYS_32);
        let unknown: Vec<_> = all.filter(|name| !known(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(!table(X86, Capabilities::NONE).calls.contains_key(&102), "socketcall");
    }
}
