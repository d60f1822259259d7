//! `meshctl sandbox`: the local cluster on its own.

use crate::args::{ImageCommand, Sandbox, SandboxCommand, SandboxUp, TextFormat};
use crate::commands::sandbox_context;
use crate::error::{Context, Error, Hint, Outcome, Result};
use crate::output::{Printer, numbers, words};
use comfy_table::Cell;
use mesh_sandbox::lifecycle::{self, Image, Status, Up, UpOptions};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Does one of the sandbox's verbs.
pub async fn run(args: Sandbox, printer: &Printer) -> Result<Outcome> {
    match args.command {
        SandboxCommand::Up(args) => up(args, printer).await,
        SandboxCommand::Down { name } => down(name, printer).await,
        SandboxCommand::Status { name, output } => status(name, output, printer).await,
        SandboxCommand::Kubeconfig { name } => {
            let path = blocking(move || lifecycle::kubeconfig_path(&name)).await.during(|| "find the kubeconfig")?;
            printer.data(&format!("{}\n", path.display()))?;
            Ok(Outcome::Well)
        }
        SandboxCommand::Image(args) => image(args.command, printer).await,
    }
}

/// Runs what blocks away from the runtime's own threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|cause| Error::new(cause.to_string()))?;
    // Only the words count here; what was tried is said by the caller.
    done.map_err(|cause| Error::new(format!("{cause:#}")))
}

/// Starts a sandbox, with progress.
pub async fn start(options: UpOptions, printer: &Printer) -> Result<Up> {
    let name = options.name.clone();
    let step = printer.step(&format!("starting sandbox {name}"));
    let up = blocking(move || lifecycle::up(options)).await.during(|| format!("start sandbox {name}"))?;
    step.done(&format!("sandbox {name} {}", if up.already { "runs already" } else { "is ready" }));
    Ok(up)
}

async fn up(args: SandboxUp, printer: &Printer) -> Result<Outcome> {
    let options = UpOptions { name: args.name, die_with_parent: false, images: Vec::new() };
    let up = start(options, printer).await?;
    if args.set_context {
        let (file, context) = sandbox_context::set(&up.kubeconfig)?;
        printer.note(&format!("context {context} is the current one in {}", file.display()));
    }
    match args.output {
        TextFormat::Json => {
            printer.json(&json!({"name": up.name, "kubeconfig": up.kubeconfig, "already": up.already}))?;
        }
        // A line that a shell can evaluate.
        TextFormat::Table => printer.data(&format!("export KUBECONFIG={}\n", shell_word(&up.kubeconfig)))?,
    }
    Ok(Outcome::Well)
}

async fn down(name: String, printer: &Printer) -> Result<Outcome> {
    let step = printer.step(&format!("stopping sandbox {name}"));
    let of = name.clone();
    let kubeconfig = blocking(move || lifecycle::kubeconfig_path(&of)).await.ok();
    let context = kubeconfig.as_deref().and_then(sandbox_context::name_in);
    let of = name.clone();
    let existed = blocking(move || lifecycle::down(&of)).await.during(|| format!("stop sandbox {name}"))?;
    if let Some(context) = context {
        sandbox_context::forget(&context)?;
    }
    step.done(&if existed { format!("sandbox {name} is gone") } else { format!("there was no sandbox {name}") });
    Ok(Outcome::Well)
}

async fn status(name: Option<String>, output: TextFormat, printer: &Printer) -> Result<Outcome> {
    let one = name.is_some();
    let all = match name {
        Some(name) => vec![blocking(move || lifecycle::status(&name)).await.during(|| "look at the sandbox")?],
        None => blocking(lifecycle::list).await.during(|| "look for sandboxes")?,
    };
    match (output, all.first()) {
        (TextFormat::Json, Some(status)) if one => printer.json(status)?,
        (TextFormat::Json, _) => printer.json(&all)?,
        (TextFormat::Table, None) => printer.note("No sandbox runs. Start one with `meshctl sandbox up`."),
        (TextFormat::Table, Some(_)) => printer.table(
            &[
                words("NAME"),
                words("STATE"),
                numbers("PODS"),
                numbers("UP"),
                words("MODE"),
                words("IP"),
                words("SERVER"),
                words("KUBECONFIG"),
            ],
            all.iter().map(status_cells).collect(),
        )?,
    }
    for status in &all {
        if let Some(why) = &status.without_ipv6 {
            printer.note(&format!("Sandbox {} has IPv4 only: {why}.", status.name));
        }
    }
    Ok(Outcome::Well)
}

fn status_cells(status: &Status) -> Vec<Cell> {
    let or_dash = |text: Option<String>| Cell::new(text.unwrap_or_else(|| "-".to_owned()));
    vec![
        Cell::new(&status.name),
        Cell::new(if status.running { "running" } else { "stopped" }),
        or_dash(status.pods.map(|pods| pods.to_string())),
        or_dash(status.up_seconds.map(age)),
        or_dash(status.rootless.map(|rootless| if rootless { "rootless" } else { "root" }.to_owned())),
        or_dash(status.running.then(|| if status.without_ipv6.is_some() { "v4 only" } else { "v4+v6" }.to_owned())),
        or_dash(status.server.clone()),
        or_dash(status.kubeconfig.as_ref().map(|path| path.display().to_string())),
    ]
}

/// `42s`, `5m`, `3h`, `2d`, as kubectl writes ages.
fn age(seconds: u64) -> String {
    match seconds {
        s if s >= 2 * 86_400 => format!("{}d", s / 86_400),
        s if s >= 2 * 3600 => format!("{}h", s / 3600),
        s if s >= 2 * 60 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

async fn image(command: ImageCommand, printer: &Printer) -> Result<Outcome> {
    match command {
        ImageCommand::Add { sandbox, image, program } => {
            // Programs that go by several names (redis-server is one of redis-check-rdb's) look at how they were called.
            let argv0 = Some(program.display().to_string());
            let program = find_program(&program, std::env::var_os("PATH").as_deref())?;
            let label = format!("{image} is {}", program.display());
            let added = Image { name: image, program, argv0 };
            blocking(move || lifecycle::image_add(&sandbox, added)).await.during(|| "add the image")?;
            printer.note(&label);
        }
        ImageCommand::Remove { sandbox, image } => {
            let (name, of) = (image.clone(), sandbox.clone());
            let there = blocking(move || lifecycle::image_remove(&of, &name)).await.during(|| "remove the image")?;
            if !there {
                return Err(
                    Error::new(format!("sandbox {sandbox} has no such image")).during(format!("remove {image}"))
                )
                .hint(|| "`meshctl sandbox image list` shows what there is");
            }
        }
        ImageCommand::List { sandbox, output } => {
            let images = blocking(move || lifecycle::image_list(&sandbox)).await.during(|| "list images")?;
            let rows =
                images.iter().map(|image| vec![Cell::new(&image.name), Cell::new(image.program.display())]).collect();
            match output {
                TextFormat::Json => printer.json(&images)?,
                TextFormat::Table => printer.table(&[words("IMAGE"), words("PROGRAM")], rows)?,
            }
        }
    }
    Ok(Outcome::Well)
}

/// The absolute path of a program, looked for in `PATH` if it is only a name.
fn find_program(program: &Path, path: Option<&std::ffi::OsStr>) -> Result<PathBuf> {
    let runnable =
        |file: &Path| file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    let tried = || format!("use the program {}", program.display());
    if program.components().count() == 1 && !program.is_absolute() {
        let found = path.into_iter().flat_map(std::env::split_paths).map(|dir| dir.join(program)).find(|p| runnable(p));
        if let Some(found) = found {
            return Ok(found);
        }
    }
    let absolute = program.canonicalize().during(tried).hint(|| "give the path of a program on this machine")?;
    if !runnable(&absolute) {
        return Err(Error::new("it cannot be executed").during(tried()))
            .hint(|| "give the path of a program on this machine");
    }
    Ok(absolute)
}

/// A path as one word for a shell.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_name_or_path() {
        let path = Some(std::ffi::OsStr::new("/nowhere:/bin:/usr/bin"));
        assert!(find_program(Path::new("sh"), path).unwrap().is_absolute());
        assert!(find_program(Path::new("/bin/sh"), None).unwrap().is_absolute());
        let error = find_program(Path::new("/nowhere/x"), path).unwrap_err();
        assert!(error.to_string().starts_with("cannot use the program /nowhere/x: "), "{error}");
        assert_eq!(
            find_program(Path::new("/etc/passwd"), path).unwrap_err().to_string(),
            "cannot use the program /etc/passwd: it cannot be executed"
        );
    }

    #[test]
    fn a_shell_can_read_the_path() {
        assert_eq!(shell_word(Path::new("/run/user/0/x-1.yaml")), "/run/user/0/x-1.yaml");
        assert_eq!(shell_word(Path::new("/it's here")), r"'/it'\''s here'");
    }
}
