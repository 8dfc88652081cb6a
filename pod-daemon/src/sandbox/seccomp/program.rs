//! From a policy to classic BPF, as the kernel takes it.
//!
//! Numbers are found by binary search, so a call costs eight comparisons instead of hundreds. All
//! parts are relative to themselves and can be put anywhere; jumps only go forward.

use libc::sock_filter;

use super::{
    Error,
    policy::{Action, Compare, Condition, Policy, Rule, Table},
};

/// The most instructions that the kernel takes.
const MAX: usize = 4096;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const IF_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

type Code = Vec<sock_filter>;

/// The program of a policy.
pub(super) fn compile(policy: &Policy) -> Result<Code, Error> {
    let mut code = vec![give(policy.foreign)];
    for table in policy.tables.iter().rev() {
        let own = [vec![load(NUMBER)], search(&ranges(table, policy.foreign))].concat();
        code = either(IF_EQUAL, table.abi.audit, own, code);
    }
    code.insert(0, load(ARCHITECTURE));
    if code.len() > MAX {
        return Err(Error::Unsupported(format!(
            "becomes {} instructions, and the kernel takes {MAX}: give it fewer conditions",
            code.len()
        )));
    }
    Ok(code)
}

/// What is done from one number to the next: first number and code.
fn ranges(table: &Table, foreign: Action) -> Vec<(u32, Code)> {
    let mut ranges: Vec<(u32, Code)> = Vec::new();
    let mut next = 0;
    let mut push = |first, code: Code| match ranges.last() {
        Some((_, last)) if same(last, &code) => {}
        _ => ranges.push((first, code)),
    };
    for (number, rules) in table.calls.range(..table.abi.end) {
        if *number > next {
            push(next, vec![give(table.otherwise)]);
        }
        push(*number, decide(rules, table.otherwise));
        next = number + 1;
    }
    let (beyond, unknown) = table.beyond.unwrap_or((next, table.otherwise));
    if beyond > next {
        push(next, vec![give(table.otherwise)]);
    }
    push(beyond.max(next), vec![give(unknown)]);
    if table.abi.end < u32::MAX {
        push(table.abi.end, vec![give(foreign)]);
    }
    ranges
}

/// Finds the range of the number that is loaded.
fn search(ranges: &[(u32, Code)]) -> Code {
    match ranges {
        [] => Code::new(),
        [(_, code)] => code.clone(),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            either(IF_GREATER_OR_EQUAL, upper[0].0, search(upper), search(lower))
        }
    }
}

/// Applies the first rule whose conditions are met.
fn decide(rules: &[Rule], otherwise: Action) -> Code {
    let mut code = Code::new();
    for rule in rules {
        let mut tests = vec![give(rule.then)];
        for condition in rule.when.iter().rev() {
            tests = test(*condition, tests);
        }
        code.extend(tests);
        if rule.when.is_empty() {
            return code;
        }
    }
    code.push(give(otherwise));
    code
}

/// Goes on with `then` if the condition is met, and else to what comes after it.
fn test(condition: Condition, then: Code) -> Code {
    let Condition { argument, mask, compare, value } = condition;
    // "Less" is "not greater or equal", and so on.
    let (jump, is_met) = match compare {
        Compare::Equal => (IF_EQUAL, true),
        Compare::NotEqual => (IF_EQUAL, false),
        Compare::GreaterOrEqual => (IF_GREATER_OR_EQUAL, true),
        Compare::Less => (IF_GREATER_OR_EQUAL, false),
        Compare::Greater => (IF_GREATER, true),
        Compare::LessOrEqual => (IF_GREATER, false),
    };
    let halves = [
        (ARGUMENTS + 8 * argument, (mask & 0xffff_ffff) as u32, (value & 0xffff_ffff) as u32),
        (ARGUMENTS + 8 * argument + 4, (mask >> 32) as u32, (value >> 32) as u32),
    ];
    let [low, high] = halves.map(|(offset, mask, value)| {
        let mut code = vec![load(offset)];
        if mask != u32::MAX {
            code.push(sock_filter { code: AND, jt: 0, jf: 0, k: mask });
        }
        (code, value)
    });
    // How much of `then` is jumped over where the comparison holds, and where it does not.
    let (holds, fails) = if is_met { (0, then.len()) } else { (then.len(), 0) };
    let mut tail = low.0;
    tail.extend(branch(jump, low.1, holds, fails));
    let mut code = high.0;
    if jump == IF_EQUAL {
        code.extend(branch(IF_EQUAL, high.1, 0, tail.len() + fails));
    } else {
        // A greater upper half decides for "greater", a smaller one against it.
        let below = branch(IF_EQUAL, high.1, 0, tail.len() + fails);
        code.extend(branch(IF_GREATER, high.1, below.len() + tail.len() + holds, 0));
        code.extend(below);
    }
    code.extend(tail);
    code.extend(then);
    code
}

/// `then` if the comparison holds, else `otherwise`; both end in a return.
fn either(jump: u16, value: u32, then: Code, otherwise: Code) -> Code {
    let mut code = branch(jump, value, otherwise.len(), 0);
    code.extend(otherwise);
    code.extend(then);
    code
}

/// Jumps over so many instructions after the branch itself. Conditional jumps reach 255 of them.
fn branch(code: u16, k: u32, yes: usize, no: usize) -> Code {
    match (u8::try_from(yes), u8::try_from(no)) {
        (Ok(jt), Ok(jf)) => vec![sock_filter { code, jt, jf, k }],
        _ => vec![sock_filter { code, jt: 0, jf: 1, k }, skip(yes + 1), skip(no)],
    }
}

fn skip(count: usize) -> sock_filter {
    sock_filter { code: JUMP, jt: 0, jf: 0, k: u32::try_from(count).unwrap_or(u32::MAX) }
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn give(action: Action) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: action.value() }
}

fn same(left: &[sock_filter], right: &[sock_filter]) -> bool {
    let fields = |code: &[sock_filter]| {
        code.iter().map(|line| (line.code, line.jt, line.jf, line.k)).collect::<Vec<_>>()
    };
    fields(left) == fields(right)
}

#[cfg(test)]
mod tests;
