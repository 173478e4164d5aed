//! Identities made from what the machine is: its firmware, its operating system's installation, its current boot.

use std::fs;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::HostSource;
use super::file::{read_line, read_start};
use crate::nqn::Uuid;

/// The system UUID as the kernel prints that of the SMBIOS tables.
pub(super) const PRODUCT_UUID: &str = "sys/class/dmi/id/product_uuid";
/// The SMBIOS structures themselves, one folder `type-instance` each.
pub(super) const DMI_ENTRIES: &str = "sys/firmware/dmi/entries";
/// The UUID of an IBM POWER partition, NUL-terminated.
pub(super) const PARTITION_UUID: &str = "proc/device-tree/ibm,partition-uuid";
pub(super) const MACHINE_ID: &str = "etc/machine-id";
pub(super) const BOOT_ID: &str = "proc/sys/kernel/random/boot_id";
pub(super) const HOST_NAME: &str = "proc/sys/kernel/hostname";

/// SMBIOS structure type of System Information, which holds the UUID (SMBIOS 3.7 §7.2).
const SYSTEM_INFORMATION: &str = "1-";
/// Where the UUID lies in that structure (SMBIOS 3.7 §7.2, Table 10).
const SMBIOS_UUID: usize = 8;
/// Folders looked at; machines have some hundred structures.
const MAX_ENTRIES: usize = 4096;

/// What a derived identifier is for: neither the machine's identifier nor what others derive from it can be told
/// from ours. `systemd-id128 machine-id --app-specific=d62b7390-ca2d-4ec3-9034-070a784d837b` prints the same.
const APPLICATION: [u8; 16] = 0xd62b_7390_ca2d_4ec3_9034_070a_784d_837b_u128.to_be_bytes();

/// The firmware's UUID, if it may be read and is one.
pub(super) fn firmware(root: &Path) -> Option<(Uuid, HostSource)> {
    let (uuid, path) = product_uuid(root).or_else(|| dmi_entries(root)).or_else(|| device_tree(root))?;
    Some((uuid, HostSource::Firmware(path)))
}

/// Boards without a UUID of their own report all zeroes or all ones (SMBIOS 3.7 §7.2.1).
fn settled(uuid: Uuid) -> Option<Uuid> {
    (!uuid.is_zero() && uuid.to_bytes() != [0xff; 16]).then_some(uuid)
}

/// The kernel has put the bytes in order already.
fn product_uuid(root: &Path) -> Option<(Uuid, PathBuf)> {
    let path = root.join(PRODUCT_UUID);
    let uuid = read_line(&path).ok()??.parse().ok().and_then(settled)?;
    Some((uuid, path))
}

fn dmi_entries(root: &Path) -> Option<(Uuid, PathBuf)> {
    let mut entries: Vec<PathBuf> = fs::read_dir(root.join(DMI_ENTRIES))
        .ok()?
        .take(MAX_ENTRIES)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(SYSTEM_INFORMATION)))
        .collect();
    entries.sort();
    entries.into_iter().find_map(|entry| {
        let path = entry.join("raw");
        let structure = read_start(&path)?;
        let bytes = structure.get(SMBIOS_UUID..SMBIOS_UUID + 16)?.try_into().ok()?;
        Some((settled(from_smbios(bytes))?, path))
    })
}

/// The first three fields are little endian (SMBIOS 3.7 §7.2.1).
fn from_smbios(mut bytes: [u8; 16]) -> Uuid {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    Uuid::from_bytes(bytes)
}

fn device_tree(root: &Path) -> Option<(Uuid, PathBuf)> {
    let path = root.join(PARTITION_UUID);
    let content = read_start(&path)?;
    let text = content.split(|&byte| byte == 0).next()?;
    let uuid = std::str::from_utf8(text).ok()?.trim().parse().ok().and_then(settled)?;
    Some((uuid, path))
}

/// From the identifier of the installation (machine-id(5)), which is not to be shown to others itself.
pub(super) fn machine(root: &Path) -> Option<(Uuid, HostSource)> {
    let path = root.join(MACHINE_ID);
    let line = read_line(&path).ok()??;
    // 32 hexadecimal digits; before the first boot the file is empty or says "uninitialized".
    let digits = line.len() == 32 && line.bytes().all(|b| b.is_ascii_hexdigit());
    let key = u128::from_str_radix(&line, 16).ok().filter(|&key| digits && key != 0)?;
    Some((derived(key, &[])?, HostSource::MachineId(path)))
}

/// From the identifier of the current boot. Containers of one machine share it, so the host's name goes in.
pub(super) fn boot(root: &Path) -> Option<(Uuid, HostSource)> {
    let path = root.join(BOOT_ID);
    let boot: Uuid = read_line(&path).ok()??.parse().ok()?;
    let name = read_line(&root.join(HOST_NAME)).ok().flatten().unwrap_or_default();
    Some((derived(u128::from_be_bytes(boot.to_bytes()), name.as_bytes())?, HostSource::BootId(path)))
}

/// The derivation of sd_id128_get_app_specific(3): HMAC-SHA-256 of the application's identifier, made a version 4
/// UUID.
fn derived(key: u128, more: &[u8]) -> Option<Uuid> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.to_be_bytes()).ok()?;
    mac.update(&APPLICATION);
    mac.update(more);
    let mut bytes: [u8; 16] = mac.finalize().into_bytes()[..16].try_into().ok()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Some(Uuid::from_bytes(bytes))
}
