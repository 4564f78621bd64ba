//! Reads NumPy `.npy` files of two dimensions: float16 and float32 vectors, and unsigned neighbour lists.
//!
//! Only what the tools need: C order, little-endian, versions 1 to 3. The header is untrusted: its length, its shape and
//! the file's size are checked against each other before anything is allocated, and rows are read one batch at a time, so
//! memory does not grow with the file.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use cluster_config::limits;
use half::f16;

/// Most bytes of a header that is believed. NumPy writes 118 for plain arrays.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Most columns: the widest vector, or the longest neighbour list, whichever is larger.
const COLUMNS_MAX: usize = limits::DIM_MAX as usize;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// Not a file of the supported form.
    #[error("{path}: {problem}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Element type of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE half, `<f2`.
    F16,
    /// IEEE single, `<f4`.
    F32,
    /// Unsigned 32 bits, `<u4`.
    U32,
    /// Signed 64 bits, `<i8`: NumPy's default integer.
    I64,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Element::F16 => 2,
            Element::F32 | Element::U32 => 4,
            Element::I64 => 8,
        }
    }
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    element: Element,
    rows: usize,
    columns: usize,
}

/// An open two-dimensional array, read from the first row to the last.
#[derive(Debug)]
pub struct NpyReader<R> {
    path: PathBuf,
    input: R,
    header: Header,
    rows_left: usize,
}

/// Opens a `.npy` file. Errors: not two-dimensional, an unsupported type or order, or a size that differs from its shape.
pub fn open(path: &Path) -> Result<NpyReader<BufReader<File>>, NpyError> {
    let io = |source| NpyError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    NpyReader::new(path, BufReader::with_capacity(1 << 20, file), file_bytes)
}

impl<R: Read> NpyReader<R> {
    fn new(path: &Path, mut input: R, file_bytes: u64) -> Result<Self, NpyError> {
        let format = |problem: String| NpyError::Format { path: path.to_owned(), problem };
        let io = |source| NpyError::Io { path: path.to_owned(), source };
        let mut preamble = [0; 8];
        input.read_exact(&mut preamble).map_err(|_| format("not a .npy file: too short".into()))?;
        if &preamble[..6] != b"\x93NUMPY" {
            return Err(format("not a .npy file: wrong magic bytes".into()));
        }
        let length_bytes = match preamble[6] {
            1 => 2,
            2 | 3 => 4,
            version => return Err(format(format!("unknown .npy version {version}"))),
        };
        let mut length = [0; 4];
        input.read_exact(&mut length[..length_bytes]).map_err(io)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > HEADER_BYTES_MAX {
            return Err(format(format!("a header of {length} bytes is above {HEADER_BYTES_MAX}")));
        }
        let mut text = vec![0; length];
        input.read_exact(&mut text).map_err(|_| format("the header is cut off".into()))?;
        let header = parse_header(&String::from_utf8_lossy(&text)).map_err(format)?;
        let expected = (header.rows as u64)
            .checked_mul((header.columns * header.element.bytes()) as u64)
            .and_then(|data| data.checked_add((8 + length_bytes + length) as u64));
        if expected != Some(file_bytes) {
            return Err(format(format!(
                "the shape ({}, {}) does not fit a file of {file_bytes} bytes",
                header.rows, header.columns
            )));
        }
        Ok(Self { path: path.to_owned(), input, rows_left: header.rows, header })
    }

    /// Rows of the array.
    pub fn rows(&self) -> usize {
        self.header.rows
    }

    /// Columns of the array: the dimension of its vectors.
    pub fn columns(&self) -> usize {
        self.header.columns
    }

    /// The next rows, at most `rows_max`, as floats; empty at the end. Errors: the array does not hold floats.
    pub fn next_vectors(&mut self, rows_max: usize) -> Result<Vec<Vec<f32>>, NpyError> {
        let element = self.header.element;
        let decode: fn(&[u8]) -> f32 = match element {
            Element::F16 => |bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Element::F32 => |bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Element::U32 | Element::I64 => return Err(self.wrong_element("float16 or float32")),
        };
        self.next_rows(rows_max, decode)
    }

    /// The next rows, at most `rows_max`, as row numbers; empty at the end. Errors: the array does not hold integers.
    pub fn next_numbers(&mut self, rows_max: usize) -> Result<Vec<Vec<i64>>, NpyError> {
        let decode: fn(&[u8]) -> i64 = match self.header.element {
            Element::U32 => |bytes| i64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
            Element::I64 => |bytes| i64::from_le_bytes(std::array::from_fn(|index| bytes[index])),
            Element::F16 | Element::F32 => return Err(self.wrong_element("uint32 or int64")),
        };
        self.next_rows(rows_max, decode)
    }

    fn next_rows<T>(&mut self, rows_max: usize, decode: fn(&[u8]) -> T) -> Result<Vec<Vec<T>>, NpyError> {
        let rows = rows_max.min(self.rows_left);
        let mut bytes = vec![0; self.header.columns * self.header.element.bytes()];
        let mut decoded = Vec::with_capacity(rows);
        for _ in 0..rows {
            self.input.read_exact(&mut bytes).map_err(|source| NpyError::Io { path: self.path.clone(), source })?;
            decoded.push(bytes.chunks_exact(self.header.element.bytes()).map(decode).collect());
        }
        self.rows_left -= rows;
        Ok(decoded)
    }

    fn wrong_element(&self, wanted: &str) -> NpyError {
        let problem = format!("holds {:?}, expected {wanted}", self.header.element);
        NpyError::Format { path: self.path.clone(), problem }
    }
}

/// Reads the Python dictionary of a header, as `{'descr': '<f2', 'fortran_order': False, 'shape': (50000, 384), }`.
fn parse_header(text: &str) -> Result<Header, String> {
    let value_of = |key: &str| -> Result<&str, String> {
        let at = text.find(&format!("'{key}'")).ok_or_else(|| format!("the header has no {key}"))?;
        let rest = &text[at + key.len() + 2..];
        rest.split_once(':')
            .map(|(_, value)| value.trim_start())
            .ok_or_else(|| format!("the header's {key} has no value"))
    };
    let descr = value_of("descr")?;
    let descr =
        descr.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map_or("a structured type", |(name, _)| name);
    let element = match descr {
        "<f2" => Element::F16,
        "<f4" => Element::F32,
        "<u4" => Element::U32,
        "<i8" => Element::I64,
        other => {
            return Err(format!(
                "element type {other} is not supported: save as little-endian float16, float32, uint32 or int64"
            ));
        }
    };
    if !value_of("fortran_order")?.starts_with("False") {
        return Err("the array is in Fortran order: save it with numpy.ascontiguousarray".into());
    }
    let shape = value_of("shape")?;
    let inner = shape.strip_prefix('(').and_then(|rest| rest.split_once(')')).map(|(inner, _)| inner);
    let sizes: Vec<usize> = inner
        .ok_or("the header's shape is not a tuple")?
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(|size| size.parse().map_err(|_| format!("the header's shape has {size:?}")))
        .collect::<Result<_, String>>()?;
    let &[rows, columns] = sizes.as_slice() else {
        return Err(format!("the array has {} dimensions, expected 2", sizes.len()));
    };
    if columns == 0 || columns > COLUMNS_MAX {
        return Err(format!("{columns} columns: expected 1 to {COLUMNS_MAX}"));
    }
    Ok(Header { element, rows, columns })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x93, b'N', b'U', b'M', b'P', b'Y', version, 0];
        match version {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<NpyReader<&[u8]>, NpyError> {
        NpyReader::new(Path::new("test.npy"), bytes, bytes.len() as u64)
    }

    #[test]
    fn halves_singles_and_integers_are_read_in_batches() {
        let halves: Vec<u8> =
            [1.0, -0.5, 0.25, 2.0, 0.0, 1.5].iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let bytes = file(1, "{'descr': '<f2', 'fortran_order': False, 'shape': (3, 2), }   \n", &halves);
        let mut array = read(&bytes).expect("opens");
        assert_eq!((array.rows(), array.columns()), (3, 2));
        assert_eq!(array.next_vectors(2).expect("reads"), [vec![1.0, -0.5], vec![0.25, 2.0]]);
        assert_eq!(array.next_vectors(2).expect("reads"), [vec![0.0, 1.5]]);
        assert!(array.next_vectors(2).expect("ends").is_empty());

        let singles: Vec<u8> = [0.1f32, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let bytes = file(2, "{'shape': (1, 2), 'descr': '<f4', 'fortran_order': False}", &singles);
        assert_eq!(read(&bytes).expect("opens").next_vectors(9).expect("reads"), [vec![0.1, 3.0]]);

        let numbers: Vec<u8> = [7u32, u32::MAX].iter().flat_map(|x| x.to_le_bytes()).collect();
        let bytes = file(3, "{'descr': '<u4', 'fortran_order': False, 'shape': (2, 1), }", &numbers);
        assert_eq!(read(&bytes).expect("opens").next_numbers(9).expect("reads"), [vec![7], vec![i64::from(u32::MAX)]]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let cases: [(Vec<u8>, &str); 11] = [
            (b"PK\x03\x04....".to_vec(), "wrong magic"),
            (b"\x93NUM".to_vec(), "too short"),
            (file(9, "", &[]), "version 9"),
            (file(1, "{'descr': '>f4', 'fortran_order': False, 'shape': (1, 1), }", &[0; 4]), "element type >f4"),
            (file(1, "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 1), }", &[0; 4]), "structured"),
            (file(1, "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1), }", &[0; 4]), "Fortran"),
            (file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", &[0; 16]), "1 dimensions"),
            (file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 0), }", &[]), "0 columns"),
            (file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }", &[0; 15]), "does not fit"),
            // A shape whose byte count overflows must not be believed.
            (
                file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (18446744073709551615, 4), }", &[]),
                "does not fit",
            ),
            (file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }", &[]), "\"-1\""),
        ];
        for (bytes, expected) in cases {
            let error = read(&bytes).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
        let mut cut = file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }", &[0; 4]);
        cut[8] = 0xff;
        assert!(read(&cut).expect_err("cut off").to_string().contains("cut off"));
    }

    #[test]
    fn numbers_are_not_vectors() {
        let bytes = file(1, "{'descr': '<u4', 'fortran_order': False, 'shape': (1, 1), }", &[0; 4]);
        assert!(read(&bytes).expect("opens").next_vectors(1).is_err());
        let bytes = file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }", &[0; 4]);
        assert!(read(&bytes).expect("opens").next_numbers(1).is_err());
    }
}
