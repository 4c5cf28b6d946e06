//! Writes the checked-in seeds anew. Run it when the format of a message changes.

use std::path::Path;

use ghostwire_fuzz_targets::seeds::{self, Trouble};

fn main() -> Result<(), Trouble> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seeds");
    for seed in seeds::all()? {
        let file = folder.join(seed.target).join(seed.name);
        std::fs::create_dir_all(folder.join(seed.target))?;
        std::fs::write(&file, seed.bytes)?;
        println!("{}", file.display());
    }
    Ok(())
}
