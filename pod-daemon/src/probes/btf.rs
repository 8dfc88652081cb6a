//! Offsets of kernel fields, from the running kernel's own type information.
//!
//! A reader of just what the probes need: members of named structures, and the functions and
//! tracepoint parameters that exist. The format is `Documentation/bpf/btf.rst` in the kernel's tree.

use std::{fs, io, path::Path};

use memchr::memmem;
use pod_ebpf::offsets::{ABSENT, FIELDS, Field, Offsets};

/// The kernel's type information.
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    /// Byte position of each type; type ids begin at 1.
    types: Vec<usize>,
    /// Structures and unions.
    structs: Vec<Named>,
    /// Functions.
    functions: Vec<Named>,
    /// Enumerations of 32 bits.
    enums: Vec<Named>,
}

/// A type and its name. There are tens of thousands, of which a few dozen are asked for: so it is
/// the name that is looked up in the strings, where it stands once, and not each type's that is read.
#[derive(Clone, Copy)]
struct Named {
    /// Byte position within the strings.
    name: u32,
    id: u32,
}

/// Why an offset is not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's type information cannot be read.
    #[error("failed to read `{path}` (the kernel needs CONFIG_DEBUG_INFO_BTF)")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The file is not BTF, or ends too early.
    #[error("malformed BTF at byte {0}")]
    Malformed(usize),
    /// The kernel has no such field.
    #[error("this kernel has no field `{0}`")]
    Absent(String),
}

/// Kinds of types that matter here.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const ENUM64: u32 = 19;
}

/// Bytes of a type's common part: name, info, size or type.
const HEADER: usize = 12;

impl Btf {
    /// Reads the running kernel's type information.
    pub fn from_kernel() -> Result<Self, Error> {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        let data = fs::read(path)
            .map_err(|source| Error::Read { path: path.display().to_string(), source })?;
        Self::parse(data)
    }

    fn parse(data: Vec<u8>) -> Result<Self, Error> {
        if word(&data, 0)? & 0xffff != 0xeb9f {
            return Err(Error::Malformed(0));
        }
        let header = word(&data, 4)? as usize;
        let type_start = header + word(&data, 8)? as usize;
        let type_end = type_start + word(&data, 12)? as usize;
        let strings = header + word(&data, 16)? as usize;
        let (structs, functions, enums) = (Vec::new(), Vec::new(), Vec::new());
        let mut btf = Self { data, strings, types: vec![0], structs, functions, enums };
        let mut at = type_start;
        while at < type_end {
            let id = u32::try_from(btf.types.len()).map_err(|_overflow| Error::Malformed(at))?;
            btf.types.push(at);
            let (name, info) = (word(&btf.data, at)?, word(&btf.data, at + 4)?);
            let members = (info & 0xffff) as usize;
            let trailing = match (info >> 24) & 0x1f {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION => {
                    btf.structs.push(Named { name, id });
                    12 * members
                }
                kind::ENUM => {
                    btf.enums.push(Named { name, id });
                    8 * members
                }
                kind::FUNC_PROTO => 8 * members,
                kind::FUNC => {
                    btf.functions.push(Named { name, id });
                    0
                }
                kind::DATASEC | kind::ENUM64 => 12 * members,
                _ => 0,
            };
            at += HEADER + trailing;
        }
        Ok(btf)
    }

    /// Whether the kernel has a function of this name that programs can attach to.
    pub fn has_function(&self, name: &str) -> bool {
        self.find(&self.functions, name).is_some()
    }

    /// Whether each parameter of a tracepoint is a pointer; `None` if there is no such tracepoint.
    pub fn tracepoint_pointers(&self, name: &str) -> Result<Option<Vec<bool>>, Error> {
        let strings = self.data.get(self.strings..).ok_or(Error::Malformed(self.strings))?;
        let name = format!("\0btf_trace_{name}\0");
        let Some(name) = memmem::find(strings, name.as_bytes()) else { return Ok(None) };
        let info = |at: usize| word(&self.data, at + 4);
        for at in self.types.iter().copied().skip(1) {
            if word(&self.data, at)? as usize != name + 1
                || (info(at)? >> 24) & 0x1f != kind::TYPEDEF
            {
                continue;
            }
            // A pointer to a function, whose first parameter is the program's own.
            let prototype = self.target(self.target(at)?)?;
            let parameters = 1..(info(prototype)? & 0xffff) as usize;
            let is_pointer = parameters.map(|index| {
                let id = word(&self.data, prototype + HEADER + 8 * index + 4)?;
                let resolved = self.resolve(id)? as usize;
                let at = *self.types.get(resolved).ok_or(Error::Malformed(prototype))?;
                Ok(at != 0 && (info(at)? >> 24) & 0x1f == kind::PTR)
            });
            return is_pointer.collect::<Result<_, Error>>().map(Some);
        }
        Ok(None)
    }

    /// Values and names of an enumeration of 32 bits; none if there is no such one.
    pub fn enumerators(&self, name: &str) -> Result<Vec<(u32, String)>, Error> {
        let Some(id) = self.find(&self.enums, name) else { return Ok(Vec::new()) };
        let at = *self.types.get(id as usize).ok_or(Error::Malformed(0))?;
        let count = (word(&self.data, at + 4)? & 0xffff) as usize;
        let values = (0..count).map(|index| at + HEADER + 8 * index);
        values.map(|at| Ok((word(&self.data, at + 4)?, self.name(at)?.to_owned()))).collect()
    }

    /// Byte position of the type that the one at `at` refers to.
    fn target(&self, at: usize) -> Result<usize, Error> {
        let id = word(&self.data, at + 8)? as usize;
        self.types.get(id).copied().filter(|target| *target != 0).ok_or(Error::Malformed(at))
    }

    /// The id of the first type with this name.
    fn find(&self, types: &[Named], name: &str) -> Option<u32> {
        let strings = self.data.get(self.strings..)?;
        // They begin with the empty one, so that a zero is before each.
        let before = memmem::find(strings, format!("\0{name}\0").as_bytes())?;
        let name = u32::try_from(before + 1).ok()?;
        types.iter().find(|named| named.name == name).map(|named| named.id)
    }

    /// Offset in bytes of `structure.field`, looking into anonymous members as C does.
    pub fn offset(&self, structure: &str, field: &str) -> Result<u32, Error> {
        let absent = || Error::Absent(format!("{structure}.{field}"));
        let mut id = self.find(&self.structs, structure).ok_or_else(absent)?;
        let mut bits = 0;
        // `f_path.mnt`: each step's type is where the next one is looked up.
        for step in field.split('.') {
            let (offset, member) = self.member(id, step)?.ok_or_else(absent)?;
            bits += offset;
            id = self.resolve(member)?;
        }
        Ok(bits / 8)
    }

    /// Offset of a field at the first of its places that this kernel has.
    fn find_field(&self, field: &Field) -> Result<Option<u32>, Error> {
        let at = |place: &str| {
            if let Some((enumeration, name)) = place.split_once("::") {
                let values = self.enumerators(enumeration)?;
                return Ok(values.into_iter().find(|(_, of)| of == name).map(|(value, _)| value));
            }
            match place.split_once('.') {
                Some((structure, member)) => match self.offset(structure, member) {
                    Err(Error::Absent(_)) => Ok(None),
                    other => other.map(Some),
                },
                None => Ok(None),
            }
        };
        let from = if field.from.is_empty() { Some(0) } else { at(field.from)? };
        for place in field.places {
            let Some(offset) = at(place)?.zip(from).and_then(|(at, from)| at.checked_sub(from))
            else {
                continue;
            };
            if u64::from(offset) + 8 <= u64::from(field.within) {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }

    /// Offset in bits and type of a member, also of those in anonymous members.
    fn member(&self, id: u32, field: &str) -> Result<Option<(u32, u32)>, Error> {
        let at = *self.types.get(id as usize).ok_or(Error::Malformed(0))?;
        let info = word(&self.data, at + 4)?;
        if !matches!((info >> 24) & 0x1f, kind::STRUCT | kind::UNION) {
            return Ok(None);
        }
        let is_bitfield = info >> 31 == 1;
        for index in 0..(info & 0xffff) as usize {
            let member = at + HEADER + 12 * index;
            let type_id = word(&self.data, member + 4)?;
            let offset = word(&self.data, member + 8)?;
            let offset = if is_bitfield { offset & 0xff_ffff } else { offset };
            let name = self.name(member)?;
            if name == field {
                return Ok(Some((offset, type_id)));
            }
            if name.is_empty()
                && let Some((inner, type_id)) = self.member(self.resolve(type_id)?, field)?
            {
                return Ok(Some((offset + inner, type_id)));
            }
        }
        Ok(None)
    }

    /// Follows typedefs and qualifiers, but not pointers.
    fn resolve(&self, mut id: u32) -> Result<u32, Error> {
        for _ in 0..32 {
            let Some(&at) = self.types.get(id as usize).filter(|at| **at != 0) else {
                return Ok(id);
            };
            match (word(&self.data, at + 4)? >> 24) & 0x1f {
                kind::TYPEDEF | 9 | 10 | 11 | 18 => id = word(&self.data, at + 8)?,
                kind::PTR => return Ok(id),
                _ => return Ok(id),
            }
        }
        Ok(id)
    }

    /// The name that stands at a type or a member.
    fn name(&self, at: usize) -> Result<&str, Error> {
        let start = self.strings + word(&self.data, at)? as usize;
        let tail = self.data.get(start..).ok_or(Error::Malformed(at))?;
        let end = tail.iter().position(|byte| *byte == 0).ok_or(Error::Malformed(at))?;
        std::str::from_utf8(&tail[..end]).map_err(|_invalid| Error::Malformed(at))
    }
}

/// Resolves the offsets that the probes use; what this kernel lacks is [`ABSENT`].
pub fn offsets(btf: &Btf) -> Result<Offsets, Error> {
    let mut offsets = Offsets::NONE;
    for (field, offset) in FIELDS.iter().zip(offsets.as_mut_array()) {
        *offset = btf.find_field(field)?.unwrap_or(ABSENT);
    }
    Ok(offsets)
}

fn word(data: &[u8], at: usize) -> Result<u32, Error> {
    let bytes = data.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or(Error::Malformed(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_resolves_on_this_kernel() {
        let btf = Btf::from_kernel().expect("a kernel with BTF");
        let offsets = offsets(&btf).expect("all offsets");
        let absent: Vec<_> = FIELDS
            .iter()
            .zip(offsets.as_array())
            .filter_map(|(field, offset)| (*offset == ABSENT).then_some(field.name))
            .collect();
        assert_eq!(absent, ["cgroup_ancestor_ids"]);
        assert_eq!(offsets.task_tgid, offsets.task_pid + 4, "pid and tgid are neighbours");
        assert_eq!(offsets.inode_mode, 0, "i_mode opens struct inode");
    }

    #[test]
    fn an_absent_field_is_named() {
        let btf = Btf::from_kernel().expect("a kernel with BTF");
        let error = btf.offset("task_struct", "podscope").unwrap_err();
        assert_eq!(error.to_string(), "this kernel has no field `task_struct.podscope`");
    }

    #[test]
    fn a_tracepoint_has_its_parameters() {
        let btf = Btf::from_kernel().expect("a kernel with BTF");
        let pointers = |name| btf.tracepoint_pointers(name).expect("well-formed types");
        assert_eq!(pointers("sys_enter"), Some(vec![true, false]));
        assert_eq!(pointers("podscope"), None);
    }

    #[test]
    fn an_enumeration_has_its_values() {
        let btf = Btf::from_kernel().expect("a kernel with BTF");
        let states = btf.enumerators("pid_type").expect("well-formed types");
        assert_eq!(states.first(), Some(&(0, "PIDTYPE_PID".to_owned())));
        assert_eq!(btf.enumerators("podscope").expect("none"), []);
    }

    #[test]
    fn garbage_is_refused() {
        assert!(matches!(Btf::parse(vec![0; 64]), Err(Error::Malformed(0))));
        assert!(Btf::parse(vec![0x9f, 0xeb]).is_err());
    }
}
