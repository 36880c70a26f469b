//! Files of actions: JSON, NumPy, safetensors.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use miette::miette;
use npyz::WriterBuilder;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;
use tensact::runtime::Tensor;

use super::told;

/// The innermost rows of a tensor.
pub(super) fn rows(tensor: &Tensor) -> Vec<&[f32]> {
    (0..tensor.rows()).map(|row| tensor.row(row)).collect()
}

/// Refuses files of unknown kinds, before minutes of work.
pub(super) fn check(path: &Path) -> miette::Result<()> {
    match extension(path) {
        "json" | "npy" | "safetensors" => {
            check_folder(path).map_err(|reason| miette!("cannot write {}: {reason}", path.display()))
        }
        _ => Err(miette!(
            "cannot write {}: expected a name that ends in .json, .npy or .safetensors",
            path.display()
        )),
    }
}

/// Refuses files in folders that are not there.
pub(super) fn check_folder(path: &Path) -> Result<(), String> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            Err(format!("there is no folder {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

/// Writes a tensor (under `name` in safetensors), or `answer` as JSON.
pub(super) fn write(path: &Path, name: &str, tensor: &Tensor, answer: &impl Serialize) -> miette::Result<()> {
    let failed = |error: std::io::Error| miette!("cannot write {}: {error}", path.display());
    match extension(path) {
        "npy" => write_npy(path, tensor).map_err(failed),
        "safetensors" => {
            let bytes: Vec<u8> = tensor.data().iter().flat_map(|value| value.to_le_bytes()).collect();
            let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), &bytes).map_err(told)?;
            let file = safetensors::serialize([(name, view)], None).map_err(told)?;
            std::fs::write(path, file).map_err(failed)
        }
        _ => {
            let text = serde_json::to_string_pretty(answer).map_err(told)?;
            std::fs::write(path, text).map_err(failed)
        }
    }
}

fn write_npy(path: &Path, tensor: &Tensor) -> std::io::Result<()> {
    let shape: Vec<u64> = tensor.shape().iter().map(|&dim| dim as u64).collect();
    let file = BufWriter::new(File::create(path)?);
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
    writer.extend(tensor.data().iter().copied())?;
    writer.finish()
}
