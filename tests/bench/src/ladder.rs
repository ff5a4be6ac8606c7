//! placeholder
use crate::options::Options;
pub(crate) fn run(_: &Options) -> std::io::Result<()> {
    Ok(())
}
