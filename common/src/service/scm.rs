//! The native service of Windows: what its manager says to the program, and what the program reports.
//!
//! ```text
//!  service run ─ dispatch ─> [ thread of the manager ] run() ─ ready ─> Running
//!                                  ^                           stopping ─> StopPending
//!                Stop, Shutdown, Preshutdown ─> signals::stop      end ─> Stopped, exit code
//! ```

use std::ffi::OsString;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{
    self, ServiceControlHandlerResult, ServiceStatusHandle,
};
use windows_service::{define_windows_service, service_dispatcher};

use crate::signals;

/// How long the manager is asked to wait for a start or a stop, before it may think that we hang.
const WAIT: Duration = Duration::from_secs(60);

type Work = Box<dyn FnOnce() -> u8 + Send>;

/// The manager calls a plain function, which finds here what to do.
static WORK: Mutex<Option<Work>> = Mutex::new(None);
static REPORT: Mutex<Option<ServiceStatusHandle>> = Mutex::new(None);

define_windows_service!(entry, main);

/// Does `work` as the service that the manager has started, and returns when it has ended.
///
/// # Errors
/// If it was not the manager who started this program.
pub fn dispatch(work: impl FnOnce() -> u8 + Send + 'static) -> Result<(), windows_service::Error> {
    *WORK.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(work));
    // The name only matters where several services share a process.
    service_dispatcher::start("", entry)
}

/// Whether the manager has started this program.
pub(super) fn is_service() -> bool {
    REPORT.lock().is_ok_and(|report| report.is_some())
}

pub(super) fn running() {
    report(ServiceState::Running, 0);
}

pub(super) fn stopping() {
    report(ServiceState::StopPending, 0);
}

fn main(_: Vec<OsString>) {
    let handler = |control| match control {
        ServiceControl::Stop | ServiceControl::Shutdown | ServiceControl::Preshutdown => {
            stopping();
            signals::stop();
            ServiceControlHandlerResult::NoError
        }
        // Every service must answer this one.
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        _ => ServiceControlHandlerResult::NotImplemented,
    };
    // Without a way to report there is nobody to tell that there is none.
    let Ok(handle) = service_control_handler::register("", handler) else {
        return;
    };
    *REPORT.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
    report(ServiceState::StartPending, 0);
    let work = WORK.lock().unwrap_or_else(PoisonError::into_inner).take();
    let code = work.map_or(1, |work| work());
    report(ServiceState::Stopped, code);
}

fn report(state: ServiceState, code: u8) {
    let Some(handle) = *REPORT.lock().unwrap_or_else(PoisonError::into_inner) else {
        return;
    };
    let pending = matches!(
        state,
        ServiceState::StartPending | ServiceState::StopPending
    );
    let controls_accepted = if state == ServiceState::Running {
        // Who takes Preshutdown must not take Shutdown as well; it comes earlier, and with more time.
        ServiceControlAccept::STOP | ServiceControlAccept::PRESHUTDOWN
    } else {
        ServiceControlAccept::empty()
    };
    // A manager that does not listen will notice by itself.
    let _ = handle.set_service_status(ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted,
        exit_code: if code == 0 {
            ServiceExitCode::NO_ERROR
        } else {
            ServiceExitCode::ServiceSpecific(code.into())
        },
        checkpoint: u32::from(pending),
        wait_hint: if pending { WAIT } else { Duration::ZERO },
        process_id: None,
    });
}
