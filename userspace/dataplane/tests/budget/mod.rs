//! What the verifier thinks of the programs, compared with a checked-in file: growth is noticed before it refuses
//! them on some kernel.

use std::fmt::Write as _;

use aya::programs::ProgramInfo;

/// `[program."major.minor"]` sections with `verified_instructions`, `translated_bytes` and `stack_bytes`.
const BUDGET: &str = include_str!("../../verifier-budget.toml");

/// The kernel's limit on instructions that the verifier processes.
const LIMIT: u32 = 1_000_000;

/// The kernel's limit on stack, over a chain of calls.
const STACK_LIMIT: u32 = 512;

#[derive(Debug, PartialEq, Eq)]
struct Cost {
    verified_instructions: u32,
    translated_bytes: u32,
    stack_bytes: u32,
}

fn kernel() -> String {
    let name = nix::sys::utsname::uname().unwrap();
    let release = name.release().to_string_lossy().into_owned();
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// The recorded cost of a program on this kernel.
fn recorded(program: &str, kernel: &str) -> Option<Cost> {
    let section = format!("[{program}.\"{kernel}\"]");
    let lines = BUDGET.lines().skip_while(|line| line.trim() != section).skip(1);
    let values: Vec<(&str, u32)> = lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim().parse().unwrap()))
        .collect();
    let value = |name: &str| values.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    Some(Cost {
        verified_instructions: value("verified_instructions")?,
        translated_bytes: value("translated_bytes")?,
        stack_bytes: value("stack_bytes")?,
    })
}

/// The deepest frame of each function in an object: the lowest offset from the frame pointer that is accessed or taken.
/// A sum over the longest chain of calls is what the kernel limits; the deepest single frame is what grows first.
fn deepest_frame(object: &[u8]) -> u32 {
    let object = aya_obj::Object::parse(object).unwrap();
    let frames = object.functions.values().flat_map(|function| {
        function.instructions.iter().filter_map(|instruction| {
            const FRAME: u8 = 10;
            let class = instruction.code & 7;
            let stores = matches!(class, 2 | 3) && instruction.dst_reg() == FRAME;
            let loads = class == 1 && instruction.src_reg() == FRAME;
            (stores || loads).then_some(instruction.off).filter(|offset| *offset < 0)
        })
    });
    frames.map(|offset| u32::from(offset.unsigned_abs())).max().unwrap_or(0)
}

/// Fails if a program of an object costs more than 10 % more than it is recorded to.
pub(crate) fn check(programs: &[(&str, ProgramInfo)], object: &[u8]) {
    let kernel = kernel();
    let mut record = String::new();
    for (program, info) in programs {
        let cost = Cost {
            verified_instructions: info.verified_instruction_count().unwrap(),
            translated_bytes: info.size_translated().unwrap(),
            stack_bytes: deepest_frame(object),
        };
        assert!(cost.verified_instructions < LIMIT, "{program}: {cost:?}");
        assert!(cost.stack_bytes <= STACK_LIMIT, "{program}: {cost:?}");
        let Cost { verified_instructions, translated_bytes, stack_bytes } = cost;
        write!(
            record,
            "[{program}.\"{kernel}\"]\nverified_instructions = {verified_instructions}\n\
             translated_bytes = {translated_bytes}\nstack_bytes = {stack_bytes}\n\n"
        )
        .unwrap();
        if std::env::var_os("GHOSTWIRE_RECORD_BUDGET").is_some() {
            continue;
        }
        let Some(budget) = recorded(program, &kernel) else { continue };
        for (what, now, then) in [
            ("verified instructions", verified_instructions, budget.verified_instructions),
            ("translated bytes", translated_bytes, budget.translated_bytes),
            ("stack bytes", stack_bytes, budget.stack_bytes),
        ] {
            assert!(
                u64::from(now) * 10 <= u64::from(then) * 11,
                "{program} on {kernel}: {what} grew from {then} to {now}, more than 10%. If that is meant, run this \
                 test with GHOSTWIRE_RECORD_BUDGET=1 and put what it prints into userspace/dataplane/verifier-budget.toml"
            );
        }
    }
    eprintln!("{record}");
}
