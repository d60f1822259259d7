//! Where manifests come from: files, folders (their YAML and JSON files, by name, with all below), standard input.

use crate::error::{Context, Error, Hint, Result};
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

/// Folders may be nested this deep.
const MAX_DEPTH: usize = 32;

/// One place to read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard input.
    Stdin,
    /// A file.
    File(PathBuf),
}

impl Source {
    /// How messages call it.
    pub fn name(&self) -> String {
        match self {
            Source::Stdin => "standard input".to_owned(),
            Source::File(path) => path.display().to_string(),
        }
    }

    /// Opens it.
    pub fn open(&self) -> Result<Box<dyn Read>> {
        match self {
            Source::Stdin => Ok(Box::new(std::io::stdin().lock())),
            Source::File(path) => {
                let file = File::open(path).during(|| format!("read {}", path.display()))?;
                Ok(Box::new(file))
            }
        }
    }
}

/// What the words of a command line mean: `-` is standard input, as are no words at all.
pub fn find(words: &[PathBuf]) -> Result<Vec<Source>> {
    if words.is_empty() {
        if std::io::stdin().is_terminal() {
            return Err(Error::new("there is neither a file nor anything on standard input"))
                .hint(|| "name a file or a folder, or pipe manifests in");
        }
        return Ok(vec![Source::Stdin]);
    }
    let mut sources = Vec::new();
    for word in words {
        if word == Path::new("-") {
            if sources.contains(&Source::Stdin) {
                return Err(Error::new("standard input is named twice"));
            }
            sources.push(Source::Stdin);
        } else if word.is_dir() {
            let before = sources.len();
            walk(word, 0, &mut sources)?;
            if sources.len() == before {
                return Err(
                    Error::new("it holds no .yaml, .yml or .json file").during(format!("read {}", word.display()))
                );
            }
        } else {
            word.metadata().during(|| format!("read {}", word.display()))?;
            sources.push(Source::File(word.clone()));
        }
    }
    Ok(sources)
}

fn walk(folder: &Path, depth: usize, sources: &mut Vec<Source>) -> Result<()> {
    let tried = || format!("read the folder {}", folder.display());
    if depth > MAX_DEPTH {
        return Err(Error::new(format!("it is nested more than {MAX_DEPTH} deep")).during(tried()));
    }
    let entries = std::fs::read_dir(folder).during(tried)?;
    let mut paths =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>().during(tried)?;
    paths.sort();
    for path in paths {
        // A link to a folder could lead in a circle.
        if path.is_dir() && !path.is_symlink() {
            walk(&path, depth + 1, sources)?;
        } else if path.is_file() && is_manifest(&path) {
            sources.push(Source::File(path));
        }
    }
    Ok(())
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_give_their_manifests_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("more")).unwrap();
        for name in ["b.yaml", "a.yml", "more/c.json", "notes.txt"] {
            std::fs::write(at(name), "").unwrap();
        }
        let found = find(&[folder.path().to_owned(), "-".into()]).unwrap();
        let expect: Vec<_> = ["a.yml", "b.yaml", "more/c.json"].iter().map(|name| Source::File(at(name))).collect();
        assert_eq!(found[..3], expect);
        assert_eq!(found[3], Source::Stdin);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = find(&["/nowhere/x.yaml".into()]).unwrap_err().to_string();
        assert!(error.starts_with("cannot read /nowhere/x.yaml: "), "{error}");
        let empty = tempfile::tempdir().unwrap();
        assert!(find(&[empty.path().to_owned()]).unwrap_err().to_string().contains("holds no .yaml"));
        assert!(find(&["-".into(), "-".into()]).is_err());
    }
}
