//! Tests at the outside: the real binary, a real SQLite file, real sockets and real child processes.

#[cfg(test)]
mod answers;
#[cfg(test)]
mod backup;
#[cfg(test)]
mod batches;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod dashboard;
#[cfg(test)]
mod damaged;
#[cfg(test)]
mod flow;
#[cfg(test)]
mod ground;
#[cfg(test)]
mod guard;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod http;
#[cfg(test)]
mod ids;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod layers;
#[cfg(test)]
mod listen;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod pace;
#[cfg(test)]
mod pipes;
#[cfg(test)]
mod prism;
#[cfg(test)]
mod pruning;
#[cfg(test)]
mod replaced;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod schemathesis;
#[cfg(test)]
mod service;
#[cfg(test)]
mod shutdown;
#[cfg(test)]
mod store;
#[cfg(test)]
mod syscalls;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod unpolled;
#[cfg(test)]
mod virtual_time;
#[cfg(test)]
mod webhooks;
