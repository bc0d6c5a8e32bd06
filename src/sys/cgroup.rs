//! Leaving a control group: the files of the unified tree.

use std::io;
use std::path::Path;

/// Moves this process into `to`. A group may hold a process again once it hands no controller down, so `groups` stop handing
/// theirs down first, in that order.
pub fn step_back(groups: [&str; 2], to: &str) -> io::Result<()> {
    for group in groups {
        let file = Path::new(group).join("cgroup.subtree_control");
        let handed = std::fs::read_to_string(&file)?;
        let words: Vec<String> = handed.split_whitespace().map(|name| format!("-{name}")).collect();
        if !words.is_empty() {
            std::fs::write(&file, words.join(" "))?;
        }
    }
    std::fs::write(Path::new(to).join("cgroup.procs"), "0")
}
