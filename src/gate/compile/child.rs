//! The compiler's own process: a component comes in, code goes out, and nothing else can happen.

use std::{
    fs,
    io::{self, Read, Write},
};

use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::{ADDRESSES, ARTIFACT, CPU, MEMORY};
use crate::{
    gate::{engine, plugin, text},
    model::trial::{Digest, LoadError},
};

/// Open files: the three it starts with, and a few in passing.
const FILES: u64 = 16;

/// How much kinder than its parent's controller: a plugin is not urgent.
const NICE: i32 = 10;

/// Why nothing was compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The process could not be confined, so it compiles nothing.
    #[error("this process cannot be confined: {0}")]
    Confine(String),
    /// A pipe broke.
    #[error("the component cannot be read, or its code not be written")]
    Pipe(#[from] io::Error),
    /// It is somebody else's fault that these are not the bytes that were announced.
    #[error("the component's digest is {found}, not {announced}")]
    OtherBytes {
        /// What the parent said.
        announced: Digest,
        /// What came.
        found: Digest,
    },
    /// The bytes are wrong. Told the parent as JSON, in place of code.
    #[error(transparent)]
    Refused(#[from] LoadError),
}

/// Confines this process for good, then compiles what comes out of `input` to `output`. On
/// [`CompileError::Refused`] the output is a [`LoadError`] as JSON.
///
/// # Errors
/// Why there is no code.
pub fn compile(announced: &Digest, input: impl Read, mut output: impl Write) -> Result<(), CompileError> {
    limit()?;
    let mut bytes = Vec::new();
    input.take(plugin::SIZE as u64 + 1).read_to_end(&mut bytes)?;
    let found = Digest::of(&bytes);
    if found != *announced {
        return Err(CompileError::OtherBytes { announced: announced.clone(), found });
    }
    let engine = engine::compiler().map_err(|error| CompileError::Confine(error.to_string()))?;
    // From here on, what the compiler reads is a stranger's.
    forbid()?;
    let compiled = plugin::check(&bytes)
        .and_then(|()| engine.precompile_component(&bytes).map_err(|error| plugin::not_compiled(&error)));
    match compiled {
        Ok(code) => {
            output.write_all(&code)?;
            Ok(output.flush()?)
        }
        Err(error) => {
            serde_json::to_writer(&mut output, &error).map_err(io::Error::from)?;
            output.flush()?;
            Err(error.into())
        }
    }
}

/// Takes from this process what a compiler does not need, so that nobody has to give it back.
fn limit() -> Result<(), CompileError> {
    let failed = |what: &str, error: io::Error| CompileError::Confine(format!("{what}: {error}"));
    // Where memory is short, the plugin goes, not the gate host. Refused in some sandboxes, where the host is larger.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let _ = rustix::process::nice(NICE);
    let limits = [
        (Resource::As, ADDRESSES, ADDRESSES, "address space"),
        (Resource::Data, MEMORY, MEMORY, "memory"),
        // The first is a signal that tells why, the second the end of who ignores it.
        (Resource::Cpu, CPU.as_secs(), CPU.as_secs() + 1, "CPU time"),
        (Resource::Fsize, ARTIFACT, ARTIFACT, "size of files"),
        (Resource::Nofile, FILES, FILES, "open files"),
        (Resource::Core, 0, 0, "core dumps"),
    ];
    for (resource, soft, hard, what) in limits {
        let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
        setrlimit(resource, limit).map_err(|error| failed(what, error.into()))?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|error| failed("privileges", error.into()))
}

/// Leaves this process the system calls of somebody who computes: memory that is never executed, what is open already,
/// and the end. Others are refused instead of deadly: a libc may try one and do without.
fn forbid() -> Result<(), CompileError> {
    let failed = |error: &dyn std::fmt::Display| CompileError::Confine(text::cut(&format!("seccomp: {error}"), 512));
    let rule = |argument, operator, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
        condition.and_then(|condition| SeccompRule::new(vec![condition])).map_err(|error| failed(&error))
    };
    let not_executed = rule(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC.unsigned_abs().into()), 0)?;
    // How an abort ends. Processes of the same user, as the gate host is one, get no signal from here.
    let own = rule(0, SeccompCmpOp::Eq, rustix::process::getpid().as_raw_pid().unsigned_abs().into())?;
    let computing = [
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_getrandom,
        libc::SYS_gettid,
        libc::SYS_madvise,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_yield,
        libc::SYS_sigaltstack,
        libc::SYS_write,
        libc::SYS_writev,
    ];
    let bounded = [
        (libc::SYS_mmap, vec![not_executed.clone()]),
        (libc::SYS_mprotect, vec![not_executed]),
        (libc::SYS_tgkill, vec![own]),
    ];
    let rules = computing.into_iter().map(|call| (call, vec![])).chain(bounded);
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().map_err(|error| failed(&error))?;
    let filter =
        SeccompFilter::new(rules.collect(), refuse, SeccompAction::Allow, arch).map_err(|error| failed(&error))?;
    let program: BpfProgram = filter.try_into().map_err(|error: seccompiler::BackendError| failed(&error))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| failed(&error))
}
