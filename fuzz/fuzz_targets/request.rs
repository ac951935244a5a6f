//! Requests to the control API, answered by the whole server.
#![no_main]

use std::sync::LazyLock;

use tokio::runtime::Runtime;

#[path = "../../tests/it/hostile/request.rs"]
mod request;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static SERVED: LazyLock<request::Served> = LazyLock::new(|| RUNTIME.block_on(request::Served::start()));

libfuzzer_sys::fuzz_target!(|request: &[u8]| RUNTIME.block_on(SERVED.check(request)));
