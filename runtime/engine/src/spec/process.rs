//! Arguments, environment, directory: the image's, unless the caller says otherwise.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxCapabilities, Process, User};

use super::Inputs;
use crate::EngineError;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn process(inputs: &Inputs<'_>, capabilities: LinuxCapabilities) -> Result<Process, EngineError> {
    let config = inputs.config;
    let mut user = User::default();
    user.set_uid(inputs.identity.uid);
    user.set_gid(inputs.identity.gid);
    user.set_additional_gids(Some(inputs.identity.groups.clone()));

    let mut process = Process::default();
    process.set_terminal(Some(config.tty));
    process.set_user(user);
    process.set_args(Some(args(inputs)?));
    process.set_env(Some(environment(inputs)?));
    process.set_cwd(directory(inputs)?);
    process.set_capabilities(Some(capabilities));
    // CRI's containers inherit their limits from the runtime.
    process.set_rlimits(None);
    process.set_no_new_privileges(Some(config.security.no_new_privs));
    // The shim's own value is low: nothing may be inherited.
    process.set_oom_score_adj(Some(config.oom_score_adj.unwrap_or(0).clamp(-1000, 1000)));
    Ok(process)
}

/// Kubernetes: command replaces ENTRYPOINT and then CMD is not used; args replace CMD.
fn args(inputs: &Inputs<'_>) -> Result<Vec<String>, EngineError> {
    let image = inputs.image.config().as_ref();
    let entrypoint = image.and_then(|image| image.entrypoint().clone()).unwrap_or_default();
    let cmd = image.and_then(|image| image.cmd().clone()).unwrap_or_default();
    let (command, args) = (&inputs.config.command, &inputs.config.args);
    let (first, second) = match (command.is_empty(), args.is_empty()) {
        (false, _) => (command, args),
        (true, false) => (&entrypoint, args),
        (true, true) => (&entrypoint, &cmd),
    };
    let all: Vec<String> = first.iter().chain(second).cloned().collect();
    if all.is_empty() {
        return Err(EngineError::invalid("command", "neither the container nor its image names a program to run"));
    }
    match all.iter().find(|arg| arg.contains('\0')) {
        Some(arg) => Err(EngineError::invalid("command", format!("{arg:?} contains a NUL byte"))),
        None => Ok(all),
    }
}

fn environment(inputs: &Inputs<'_>) -> Result<Vec<String>, EngineError> {
    let image = inputs.image.config().as_ref();
    let mut env = Environment::default();
    env.set(PATH.to_owned());
    env.set(format!("HOSTNAME={}", inputs.hostname));
    if inputs.config.tty {
        env.set("TERM=xterm".to_owned());
    }
    env.set(format!("HOME={}", inputs.identity.home.as_deref().unwrap_or("/")));
    for one in image.and_then(|image| image.env().as_ref()).into_iter().flatten() {
        // Without an equals sign it sets nothing.
        if one.contains('=') && !one.contains('\0') {
            env.set(one.clone());
        }
    }
    for (name, value) in &inputs.config.envs {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(EngineError::invalid("env", format!("{name:?} cannot be set")));
        }
        env.set(format!("{name}={value}"));
    }
    Ok(env.all)
}

/// `NAME=value`, each name once, the last one counts, in the order of first appearance.
#[derive(Debug, Default)]
struct Environment {
    all: Vec<String>,
    places: std::collections::HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, one: String) {
        let name = one.split('=').next().unwrap_or_default();
        match self.places.get(name).and_then(|place| self.all.get_mut(*place)) {
            Some(old) => *old = one,
            None => {
                self.places.insert(name.to_owned(), self.all.len());
                self.all.push(one);
            }
        }
    }
}

fn directory(inputs: &Inputs<'_>) -> Result<PathBuf, EngineError> {
    let image = inputs.image.config().as_ref().and_then(|image| image.working_dir().as_deref());
    let wanted = inputs.config.working_dir.as_deref().filter(|text| !text.is_empty());
    let text = wanted.or(image).filter(|text| !text.is_empty()).unwrap_or("/");
    if text.contains('\0') {
        return Err(EngineError::invalid("workingDir", "contains a NUL byte"));
    }
    Ok(PathBuf::from("/").join(text))
}
