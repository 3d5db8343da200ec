//! A small disk of one's own, which a test can fill up and empty again. Mounting it needs root; it is
//! unmounted when dropped.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A small disk of its own, which needs root.
pub struct Tmpfs(TempDir);

impl Tmpfs {
    pub fn mount(size: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=777"), "tmpfs"]);
        let mounted = mount.arg(folder.path()).status().unwrap();
        assert!(mounted.success(), "mounting a small disk needs root (CAP_SYS_ADMIN)");
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes up all the room that is left.
    pub fn fill(&self) {
        let mut file = File::create(self.path().join("filling")).unwrap();
        let block = [1; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    /// Gives the room back.
    pub fn empty(&self) {
        std::fs::remove_file(self.path().join("filling")).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _best_effort = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
