//! Runs the programs as the kernel would.

use std::collections::BTreeMap;

use super::{
    super::{
        super::{Capabilities, DEFAULT_CAPABILITIES},
        abi::{X86, X86_64},
        default, oci,
    },
    *,
};

/// What the kernel answers to a call.
fn run(code: &[sock_filter], audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(audit.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    for argument in arguments {
        data.extend(argument.to_le_bytes());
    }
    let (mut accumulator, mut at) = (0_u32, 0);
    loop {
        let line = code[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { line.jt } else { line.jf });
        match line.code {
            LOAD => {
                let offset = line.k as usize;
                accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            AND => accumulator &= line.k,
            JUMP => at += line.k as usize,
            IF_EQUAL => at += jump(accumulator == line.k),
            IF_GREATER => at += jump(accumulator > line.k),
            IF_GREATER_OR_EQUAL => at += jump(accumulator >= line.k),
            RETURN => return line.k,
            other => panic!("instruction {other:#x} is not used"),
        }
    }
}

fn errno(number: u16) -> u32 {
    Action::Errno(number).value()
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

/// The answer of the default profile to a 64-bit call.
fn ask(capabilities: Capabilities, name: &str, first: u64) -> u32 {
    let code = compile(&default::policy(capabilities)).unwrap();
    run(&code, X86_64.audit, X86_64.number(name).unwrap(), [first, 0, 0, 0, 0, 0])
}

#[test]
fn the_default_program_decides_as_its_policy() {
    let policy = default::policy(DEFAULT_CAPABILITIES);
    let code = compile(&policy).unwrap();
    for table in &policy.tables {
        for number in 0..1024 {
            let expected = match table.calls.get(&number).map(Vec::as_slice) {
                None => table.otherwise,
                Some([rule]) => rule.then,
                // Those with conditions are asked below.
                Some(_) => continue,
            };
            assert_eq!(run(&code, table.abi.audit, number, [0; 6]), expected.value(), "{number}");
        }
    }
    assert!(code.len() < 600, "{} instructions", code.len());
}

#[test]
fn known_calls_are_refused_and_unknown_ones_are_absent() {
    let usual = DEFAULT_CAPABILITIES;
    for name in ["keyctl", "io_uring_setup", "userfaultfd", "mount", "bpf", "unshare", "setns"] {
        assert_eq!(ask(usual, name, 0), errno(1), "{name}");
    }
    for name in ["clone3", "cachestat", "listmount"] {
        assert_eq!(ask(usual, name, 0), errno(38), "{name}");
    }
    for name in ["read", "openat", "execve", "exit_group", "chroot", "setresuid", "capset"] {
        assert_eq!(ask(usual, name, 0), ALLOW, "{name}");
    }
    assert_eq!(ask(Capabilities::NONE, "chroot", 0), errno(1));
    assert_eq!(ask(Capabilities::ALL, "mount", 0), ALLOW);
    assert_eq!(ask(Capabilities::ALL, "clone3", 0), ALLOW);
    assert_eq!(ask(Capabilities::ALL, "keyctl", 0), errno(1));
}

#[test]
fn arguments_are_looked_at() {
    let usual = DEFAULT_CAPABILITIES;
    assert_eq!(ask(usual, "clone", 0x0120_0011), ALLOW);
    for namespace in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x4000_0000] {
        assert_eq!(ask(usual, "clone", namespace | 0x11), errno(1), "{namespace:#x}");
    }
    assert_eq!(ask(Capabilities::ALL, "clone", 0x1000_0011), ALLOW);
    for family in [1, 2, 10, 16, 17] {
        assert_eq!(ask(usual, "socket", family), ALLOW, "{family}");
    }
    for family in [38, 40] {
        assert_eq!(ask(usual, "socket", family), errno(1), "{family}");
        // The kernel reads an int: what is above must not make it another family.
        assert_eq!(ask(usual, "socket", family | 1 << 32), errno(1), "{family}");
    }
    assert_eq!(ask(usual, "personality", 0xffff_ffff), ALLOW);
    assert_eq!(ask(usual, "personality", 0x40000), errno(1));
}

#[test]
fn other_ways_into_the_kernel_are_filtered_or_closed() {
    let code = compile(&default::policy(DEFAULT_CAPABILITIES)).unwrap();
    let x32 = |number: u32| run(&code, X86_64.audit, 0x4000_0000 | number, [0; 6]);
    for number in [0, 1, 39, 59, 321, 512, 547] {
        assert_eq!(x32(number), errno(38), "{number}");
    }
    assert_eq!(run(&code, X86_64.audit, u32::MAX, [0; 6]), errno(38));
    let x86 = |name: &str, first: u64| {
        run(&code, X86.audit, X86.number(name).unwrap(), [first, 0, 0, 0, 0, 0])
    };
    assert_eq!(x86("mmap2", 0), ALLOW);
    assert_eq!(x86("keyctl", 0), errno(1));
    assert_eq!(x86("umount", 0), errno(1));
    assert_eq!(x86("socket", 38), errno(1));
    assert_eq!(x86("socketcall", 1), errno(38));
    assert_eq!(x86("clone", 0x1000_0000), errno(1));
    // ARM's, on x86-64.
    assert_eq!(run(&code, 0x4000_0028, 1, [0; 6]), errno(38));
}

#[test]
fn what_is_beyond_is_told_apart() {
    for beyond in [8, 20] {
        let table = Table {
            abi: X86_64,
            calls: BTreeMap::from([(7, vec![Rule::always(Action::Allow)])]),
            otherwise: Action::Trap,
            beyond: Some((beyond, Action::Errno(38))),
        };
        let policy = Policy { tables: vec![table], foreign: Action::KillProcess };
        let code = compile(&policy).unwrap();
        for (number, expected) in [
            (6, Action::Trap),
            (7, Action::Allow),
            (beyond - 1, if beyond == 8 { Action::Allow } else { Action::Trap }),
            (beyond, Action::Errno(38)),
            (X86_64.end - 1, Action::Errno(38)),
            (X86_64.end, Action::KillProcess),
        ] {
            assert_eq!(run(&code, X86_64.audit, number, [0; 6]), expected.value(), "{number}");
        }
    }
}

#[test]
fn comparisons_see_all_64_bits() {
    let big = 0x1_0000_0005_u64;
    let values = [0, 4, 5, 6, 0xffff_ffff, 1 << 32, big - 1, big, big + 1, 0x2_0000_0000, u64::MAX];
    for compare in [
        Compare::Equal,
        Compare::NotEqual,
        Compare::Less,
        Compare::LessOrEqual,
        Compare::GreaterOrEqual,
        Compare::Greater,
    ] {
        for value in [5, big, u64::MAX] {
            for mask in [u64::MAX, 0xffff_ffff, 0xff] {
                let condition = Condition { argument: 2, mask, compare, value };
                let rules = vec![Rule { when: vec![condition], then: Action::Allow }];
                let table = Table {
                    abi: X86_64,
                    calls: BTreeMap::from([(7, rules)]),
                    otherwise: Action::Trap,
                    beyond: None,
                };
                let policy = Policy { tables: vec![table], foreign: Action::KillProcess };
                let code = compile(&policy).unwrap();
                for argument in values {
                    let masked = argument & mask;
                    let holds = match compare {
                        Compare::Equal => masked == value,
                        Compare::NotEqual => masked != value,
                        Compare::Less => masked < value,
                        Compare::LessOrEqual => masked <= value,
                        Compare::GreaterOrEqual => masked >= value,
                        Compare::Greater => masked > value,
                    };
                    let expected = if holds { Action::Allow } else { Action::Trap };
                    let answer = run(&code, X86_64.audit, 7, [0, 0, argument, 0, 0, 0]);
                    assert_eq!(answer, expected.value(), "{argument:#x} {condition:?}");
                }
            }
        }
    }
}

#[test]
fn long_programs_jump_far_and_too_long_ones_are_refused() {
    let profile = |count: usize| {
        let rules: Vec<String> = (0..count)
            .map(|value| {
                format!(
                    r#"{{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{{"index": 0, "value": {value}, "op": "SCMP_CMP_EQ"}}]}}"#
                )
            })
            .collect();
        let text = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["write"], "action": "SCMP_ACT_ALLOW"}}, {}]}}"#,
            rules.join(",")
        );
        oci::parse(&text).unwrap()
    };
    let code = compile(&profile(300)).unwrap();
    assert!(code.len() > 1000);
    assert_eq!(run(&code, X86_64.audit, 0, [299, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(run(&code, X86_64.audit, 0, [300, 0, 0, 0, 0, 0]), errno(1));
    assert_eq!(run(&code, X86_64.audit, 1, [0; 6]), ALLOW);
    // Newer than what the profile names.
    assert_eq!(run(&code, X86_64.audit, 2, [0; 6]), errno(38));
    assert!(compile(&profile(2000)).unwrap_err().to_string().contains("4096"));
}
