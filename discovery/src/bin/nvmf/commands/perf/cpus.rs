//! CPUs to run on: `--core-mask`, and keeping a thread on one of them.

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::failure::Failure;

/// Reads a mask in hexadecimal, `0x5` or `5`, or a list, `[0,2-3]`, as SPDK's programs do.
pub(super) fn parse_mask(text: &str) -> Result<Vec<usize>, String> {
    let most = CpuSet::MAX_CPU;
    let cpus = match text.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(Some(list)) => parse_list(list)?,
        Some(None) => return Err("the list does not end with ]".to_owned()),
        None => {
            let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
            let mut cpus = Vec::new();
            for (place, digit) in digits.chars().rev().enumerate() {
                let digit =
                    digit.to_digit(16).ok_or("neither a hexadecimal mask nor a list such as [0,2-3]")?;
                cpus.extend((0..4).filter(|bit| digit >> bit & 1 == 1).map(|bit| place * 4 + bit));
            }
            cpus
        }
    };
    match cpus.iter().max() {
        None => Err("names no CPU".to_owned()),
        Some(&cpu) if cpu >= most => {
            Err(format!("there is no CPU {cpu}; the highest possible is {}", most - 1))
        }
        Some(_) => Ok(cpus),
    }
}

fn parse_list(list: &str) -> Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let number = |text: &str| {
            text.trim().parse::<usize>().map_err(|_| format!("{text:?} is not the number of a CPU"))
        };
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last || last >= CpuSet::MAX_CPU {
            return Err(format!("{part:?} is no range of CPUs"));
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// Keeps the calling thread on one CPU.
pub(super) fn pin(cpu: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| {
        Failure::usage(format!(
            "--core-mask: this process may not run on CPU {cpu}: {error}; `nproc` tells how many there are, taskset may have \
             taken some away"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_lists() {
        let ok = |text: &str, cpus: &[usize]| assert_eq!(parse_mask(text).as_deref(), Ok(cpus), "{text}");
        ok("1", &[0]);
        ok("0x2", &[1]);
        ok("0xF0", &[4, 5, 6, 7]);
        ok("10000000000000000", &[64]);
        ok("[0]", &[0]);
        ok("[3, 0-1,1]", &[0, 1, 3]);
        for (text, why) in [
            ("", "names no CPU"),
            ("0x0", "names no CPU"),
            ("0xg", "neither a hexadecimal mask nor a list"),
            ("[0", "does not end with ]"),
            ("[]", "not the number of a CPU"),
            ("[2-1]", "no range of CPUs"),
            ("[0-99999999999]", "no range of CPUs"),
            ("[x]", "not the number of a CPU"),
        ] {
            let error = parse_mask(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(
            parse_mask(&format!("1{}", "0".repeat(CpuSet::MAX_CPU / 4)))
                .unwrap_err()
                .contains("highest possible")
        );
    }

    #[test]
    fn a_thread_stays_where_it_was_put() {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).unwrap();
        std::thread::spawn(move || {
            pin(cpu).unwrap();
            let now = rustix::thread::sched_getaffinity(None).unwrap();
            assert_eq!((now.count(), now.is_set(cpu)), (1, true));
            let none = (0..CpuSet::MAX_CPU).rfind(|&cpu| !allowed.is_set(cpu)).unwrap();
            let error = pin(none).unwrap_err();
            assert!(error.line().is_some_and(|line| line.contains("may not run on CPU")), "{error:?}");
        })
        .join()
        .unwrap();
    }
}
