//! The table of status codes: SCT, SC, command set, name and text.

use super::{CommandKind, Entry, Status, sct};

macro_rules! status_codes {
    ($($(#[$meta:meta])* $sct:ident $kind:ident {
        $($name:ident = $sc:literal => $text:literal,)*
    })*) => {
        impl Status {
            $($(
                #[doc = concat!(stringify!($sc), ": ", $text, ".")]
                pub const $name: Self = Self::new(sct::$sct, $sc);
            )*)*
        }

        pub(super) const TABLE: &[Entry] = &[$($(
            Entry { status: Status::$name, kind: status_codes!(@kind $kind), name: stringify!($name), text: $text },
        )*)*];
    };
    (@kind any) => { None };
    (@kind $kind:ident) => { Some(CommandKind::$kind) };
}

status_codes! {
    // Base 2.1 §4.2.3.1: generic.
    GENERIC any {
        SUCCESS = 0x00 => "the command completed without error",
        INVALID_OPCODE = 0x01 => "the controller does not support this command opcode",
        INVALID_FIELD = 0x02 => "a reserved or unsupported value in a defined field",
        COMMAND_ID_CONFLICT = 0x03 => "the command identifier is already in use on this queue",
        DATA_TRANSFER_ERROR = 0x04 => "transferring the data or metadata of the command failed",
        ABORTED_POWER_LOSS = 0x05 => "aborted because the controller was told that power is about to fail",
        INTERNAL_ERROR = 0x06 =>
            "the controller failed internally; its own log or the target's log should say why",
        ABORT_REQUESTED = 0x07 => "aborted at the host's request (Abort or Cancel command)",
        ABORTED_SQ_DELETION = 0x08 => "aborted because its submission queue was deleted",
        ABORTED_FAILED_FUSED = 0x09 => "aborted because the other command of its fused pair failed",
        ABORTED_MISSING_FUSED = 0x0a => "aborted because the other command of its fused pair is missing",
        INVALID_NAMESPACE_OR_FORMAT = 0x0b =>
            "the namespace does not exist, is not attached to this controller, or has an unsuitable format",
        COMMAND_SEQUENCE_ERROR = 0x0c =>
            "the command came out of sequence: something that must precede it has not been done",
        INVALID_SGL_SEGMENT_DESCRIPTOR = 0x0d => "an SGL segment or last segment descriptor is invalid",
        INVALID_SGL_DESCRIPTOR_COUNT = 0x0e => "an SGL segment holds too many or too few descriptors",
        INVALID_DATA_SGL_LENGTH = 0x0f => "the SGL is too short or too long for the data of the command",
        INVALID_METADATA_SGL_LENGTH = 0x10 =>
            "the metadata SGL is too short or too long for the metadata of the command",
        INVALID_SGL_DESCRIPTOR_TYPE = 0x11 =>
            "the controller does not support this type of SGL descriptor here",
        INVALID_CMB_USE = 0x12 => "the controller memory buffer cannot be used this way",
        INVALID_PRP_OFFSET = 0x13 => "the offset of a PRP entry is invalid",
        ATOMIC_WRITE_UNIT_EXCEEDED = 0x14 => "the write is longer than the controller writes atomically",
        OPERATION_DENIED = 0x15 =>
            "the controller denied the operation: no access rights, or authentication is missing",
        INVALID_SGL_OFFSET = 0x16 =>
            "an SGL offset is invalid: it does not fit into the capsule or is not allowed here",
        HOST_IDENTIFIER_INCONSISTENT_FORMAT = 0x18 =>
            "hosts of this subsystem use 64-bit and 128-bit host identifiers at once; they must agree",
        KEEP_ALIVE_TIMER_EXPIRED = 0x19 =>
            "the keep alive timer expired: the controller did not hear from the host in time",
        KEEP_ALIVE_TIMEOUT_INVALID = 0x1a =>
            "the keep alive timeout is not allowed: it is zero where one is required, or too long or too \
             short",
        ABORTED_PREEMPT = 0x1b => "aborted because another host preempted this host's reservation",
        SANITIZE_FAILED = 0x1c => "the last sanitize operation failed and recovery has not been done",
        SANITIZE_IN_PROGRESS = 0x1d => "a sanitize operation is in progress; try again when it is done",
        INVALID_SGL_DATA_BLOCK_GRANULARITY = 0x1e =>
            "an SGL data block's address or length is not a multiple of what the controller requires",
        NOT_SUPPORTED_FOR_CMB_QUEUE = 0x1f =>
            "the command is not supported on a queue in the controller memory buffer",
        NAMESPACE_WRITE_PROTECTED = 0x20 => "the namespace is write protected",
        COMMAND_INTERRUPTED = 0x21 =>
            "the controller interrupted the command and did not complete it; issue it again",
        TRANSIENT_TRANSPORT_ERROR = 0x22 => "a passing transport error was detected; issue the command again",
        PROHIBITED_BY_LOCKDOWN = 0x23 => "Command and Feature Lockdown prohibits this command",
        ADMIN_MEDIA_NOT_READY = 0x24 => "the command needs media that is not ready yet",
        INVALID_KEY_TAG = 0x25 => "the key tag names no media encryption key",
        HOST_DISPERSED_NAMESPACE_NOT_ENABLED = 0x26 =>
            "the host has not enabled support for dispersed namespaces (HDISNS)",
        HOST_IDENTIFIER_NOT_INITIALIZED = 0x27 => "the command needs a host identifier and none has been set",
        INCORRECT_KEY = 0x28 => "the media encryption key is not the one the data was written with",
        FDP_DISABLED = 0x29 => "Flexible Data Placement is disabled in this endurance group",
        INVALID_PLACEMENT_HANDLE_LIST = 0x2a => "the placement handle list is invalid",
        LBA_OUT_OF_RANGE = 0x80 => "the command reaches beyond the end of the namespace",
        CAPACITY_EXCEEDED = 0x81 => "the namespace's capacity is used up",
        NAMESPACE_NOT_READY = 0x82 => "the namespace is not ready for I/O",
        RESERVATION_CONFLICT = 0x83 => "another host holds a reservation that conflicts with the command",
        FORMAT_IN_PROGRESS = 0x84 => "the namespace is being formatted",
        INVALID_VALUE_SIZE = 0x85 => "the size of the value is not valid (key value command set)",
        INVALID_KEY_SIZE = 0x86 => "the size of the key is not valid (key value command set)",
        KEY_DOES_NOT_EXIST = 0x87 => "the key does not exist (key value command set)",
        UNRECOVERED_ERROR = 0x88 => "the data could not be recovered (key value command set)",
        KEY_EXISTS = 0x89 => "the key exists already (key value command set)",
    }
    // Base 2.1 §4.2.3.2: command specific.
    COMMAND_SPECIFIC any {
        INVALID_COMPLETION_QUEUE = 0x00 => "the completion queue identifier is invalid or names no queue",
        INVALID_QUEUE_IDENTIFIER = 0x01 =>
            "the queue identifier is invalid, in use, or beyond the number of queues granted",
        INVALID_QUEUE_SIZE = 0x02 =>
            "the queue size is zero or larger than the controller supports (CAP.MQES)",
        ABORT_LIMIT_EXCEEDED = 0x03 => "more Abort commands are outstanding than the controller allows (ACL)",
        ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED = 0x05 =>
            "more Asynchronous Event Requests are outstanding than the controller allows (AERL)",
        INVALID_FIRMWARE_SLOT = 0x06 => "the firmware slot is invalid or read only",
        INVALID_FIRMWARE_IMAGE = 0x07 => "the firmware image is invalid and was not loaded",
        INVALID_INTERRUPT_VECTOR = 0x08 => "the interrupt vector is invalid",
        INVALID_LOG_PAGE = 0x09 => "the log page is invalid or the controller does not support it",
        INVALID_FORMAT = 0x0a => "the LBA format or protection setting is not supported",
        FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x0b =>
            "the firmware was committed; it activates at the next conventional reset",
        INVALID_QUEUE_DELETION = 0x0c =>
            "the completion queue still has submission queues; delete them first",
        FEATURE_NOT_SAVEABLE = 0x0d => "the feature has no saved value",
        FEATURE_NOT_CHANGEABLE = 0x0e => "the feature cannot be changed",
        FEATURE_NOT_NAMESPACE_SPECIFIC = 0x0f =>
            "the feature is not per namespace; its scope is the controller or wider",
        FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x10 =>
            "the firmware was committed; it activates at the next NVM subsystem reset",
        FIRMWARE_NEEDS_CONTROLLER_RESET = 0x11 =>
            "the firmware was committed; it activates at the next controller level reset",
        FIRMWARE_NEEDS_MAX_TIME = 0x12 =>
            "activating the firmware now would take longer than MTFA; reset to activate it",
        FIRMWARE_ACTIVATION_PROHIBITED = 0x13 => "the image must not be activated, now or ever",
        OVERLAPPING_RANGE = 0x14 => "the range overlaps another",
        NAMESPACE_INSUFFICIENT_CAPACITY = 0x15 => "not enough free capacity to create the namespace",
        NAMESPACE_IDENTIFIER_UNAVAILABLE = 0x16 => "no namespace identifier is left",
        NAMESPACE_ALREADY_ATTACHED = 0x18 => "the namespace is already attached to the controller",
        NAMESPACE_PRIVATE = 0x19 => "the namespace is private and already attached to another controller",
        NAMESPACE_NOT_ATTACHED = 0x1a => "the namespace is not attached to the controller",
        THIN_PROVISIONING_NOT_SUPPORTED = 0x1b => "the controller does not support thin provisioning",
        CONTROLLER_LIST_INVALID = 0x1c => "the controller list is invalid",
        SELF_TEST_IN_PROGRESS = 0x1d => "a device self-test is in progress",
        BOOT_PARTITION_WRITE_PROHIBITED = 0x1e => "the boot partition is write protected",
        INVALID_CONTROLLER_IDENTIFIER = 0x1f => "the controller identifier is invalid",
        INVALID_SECONDARY_CONTROLLER_STATE = 0x20 =>
            "the secondary controller is in the wrong state for this",
        INVALID_CONTROLLER_RESOURCE_COUNT = 0x21 => "the number of controller resources is invalid",
        INVALID_RESOURCE_IDENTIFIER = 0x22 => "the resource identifier is invalid",
        SANITIZE_PROHIBITED_PMR_ENABLED = 0x23 =>
            "sanitize is prohibited while the persistent memory region is enabled",
        ANA_GROUP_IDENTIFIER_INVALID = 0x24 => "the ANA group identifier is not supported",
        ANA_ATTACH_FAILED = 0x25 => "the controller cannot attach the namespace in its ANA state",
        INSUFFICIENT_CAPACITY = 0x26 => "not enough free capacity",
        NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED = 0x27 => "more namespaces would be attached than allowed",
        LOCKDOWN_NOT_SUPPORTED = 0x28 => "execution of this command or feature cannot be prohibited",
        IO_COMMAND_SET_NOT_SUPPORTED = 0x29 =>
            "the controller does not support the namespace's I/O command set",
        IO_COMMAND_SET_NOT_ENABLED = 0x2a => "the namespace's I/O command set is not enabled (CC.CSS)",
        IO_COMMAND_SET_COMBINATION_REJECTED = 0x2b => "the combination of I/O command sets is not supported",
        INVALID_IO_COMMAND_SET = 0x2c => "the I/O command set is invalid for this command",
        IDENTIFIER_UNAVAILABLE = 0x2d => "no identifier of the requested kind is left",
        NAMESPACE_DISPERSED = 0x2e => "the namespace is dispersed and the command is not allowed on it",
        INVALID_DISCOVERY_INFORMATION = 0x2f => "the discovery information offered is invalid",
        ZONING_DATA_STRUCTURE_LOCKED = 0x30 => "another entity has locked the zoning data structure",
        ZONING_DATA_STRUCTURE_NOT_FOUND = 0x31 => "the zoning data structure does not exist",
        INSUFFICIENT_DISCOVERY_RESOURCES = 0x32 =>
            "the discovery controller has no room for the discovery information",
        REQUESTED_FUNCTION_DISABLED = 0x33 => "the function requested is disabled",
        ZONE_GROUP_ORIGINATOR_INVALID = 0x34 => "only the originator of a zone group may change it",
        INVALID_HOST = 0x35 => "the host is not one the command may name",
        INVALID_NVM_SUBSYSTEM = 0x36 => "the NVM subsystem is not one the command may name",
        INVALID_CONTROLLER_DATA_QUEUE = 0x37 => "the controller data queue identifier is invalid",
        NOT_ENOUGH_RESOURCES = 0x38 => "the controller does not have the resources for the command",
        CONTROLLER_SUSPENDED = 0x39 => "the controller is suspended",
        CONTROLLER_NOT_SUSPENDED = 0x3a => "the controller is not suspended",
        CONTROLLER_DATA_QUEUE_FULL = 0x3b => "the controller data queue is full",
    }
    // NVM Command Set 1.1 §3.1.1: command specific, for I/O commands.
    COMMAND_SPECIFIC Nvm {
        CONFLICTING_ATTRIBUTES = 0x80 => "the attributes of the command contradict each other",
        INVALID_PROTECTION_INFORMATION = 0x81 =>
            "the protection information fields do not fit the namespace's format",
        WRITE_TO_READ_ONLY_RANGE = 0x82 => "an attempt to write a range that is read only",
        COMMAND_SIZE_LIMIT_EXCEEDED = 0x83 =>
            "the command is longer than the namespace or controller allows for it",
        INVALID_COMMAND_ID = 0x84 => "the Cancel command names itself or no command that can be cancelled",
        INCOMPATIBLE_NAMESPACE_OR_FORMAT = 0x85 =>
            "the source and destination namespaces have incompatible formats",
        FAST_COPY_NOT_POSSIBLE = 0x86 => "a fast copy was demanded and is not possible",
        OVERLAPPING_IO_RANGE = 0x87 => "source and destination ranges overlap",
        NAMESPACE_NOT_REACHABLE = 0x88 => "the other namespace of the command cannot be reached from here",
        INSUFFICIENT_RESOURCES = 0x89 => "the controller does not have the resources for the command",
    }
    // Base 2.1 §4.2.3.2 and §6: command specific, for fabrics commands.
    COMMAND_SPECIFIC Fabrics {
        CONNECT_INCOMPATIBLE_FORMAT = 0x80 =>
            "the subsystem does not understand this format of the Connect command",
        CONNECT_CONTROLLER_BUSY = 0x81 =>
            "the controller is in use by another host or has no room for another association; try again \
             later or another port",
        CONNECT_INVALID_PARAMETERS = 0x82 =>
            "the Connect command holds a parameter the subsystem rejects: often a subsystem NQN that does \
             not exist, or a queue size or identifier out of range",
        CONNECT_RESTART_DISCOVERY = 0x83 =>
            "the subsystem is not reachable here any more; run discovery again",
        CONNECT_INVALID_HOST = 0x84 =>
            "the subsystem does not allow this host; add the host NQN to its allowed hosts, or set the right \
             host NQN and host identifier here",
        DISCONNECT_INVALID_QUEUE_TYPE = 0x85 =>
            "Disconnect was sent on a queue it is not allowed on, such as the admin queue",
        DISCOVERY_RESTART = 0x90 => "the discovery log changed while it was being read; read it again",
        AUTHENTICATION_REQUIRED = 0x91 =>
            "the subsystem requires in-band authentication first; configure a DH-HMAC-CHAP secret for this \
             host",
    }
    // Zoned Namespace Command Set 1.2 §3.1.1: command specific, for zones.
    COMMAND_SPECIFIC Zoned {
        ZONED_INVALID_OPERATION_REQUEST = 0xb6 => "the zone operation is not allowed for this zone",
        ZONED_ZRWA_RESOURCES_UNAVAILABLE = 0xb7 => "no zone random write area is left",
        ZONED_BOUNDARY_ERROR = 0xb8 => "the command crosses a zone boundary",
        ZONED_FULL = 0xb9 => "the zone is full",
        ZONED_READ_ONLY = 0xba => "the zone is read only",
        ZONED_OFFLINE = 0xbb => "the zone is offline",
        ZONED_INVALID_WRITE = 0xbc => "the write does not start at the zone's write pointer",
        ZONED_TOO_MANY_ACTIVE = 0xbd => "too many zones are active",
        ZONED_TOO_MANY_OPEN = 0xbe => "too many zones are open",
        ZONED_INVALID_STATE_TRANSITION = 0xbf => "the zone cannot go from its state to the one requested",
    }
    // Base 2.1 §4.2.3.3: media and data integrity.
    MEDIA any {
        WRITE_FAULT = 0x80 => "the data could not be written to the media",
        UNRECOVERED_READ_ERROR = 0x81 => "the data could not be read from the media",
        GUARD_CHECK_ERROR = 0x82 =>
            "end-to-end protection: the guard (CRC) of the data is wrong; it was damaged on the way or at \
             rest",
        APPLICATION_TAG_CHECK_ERROR = 0x83 => "end-to-end protection: the application tag is wrong",
        REFERENCE_TAG_CHECK_ERROR = 0x84 =>
            "end-to-end protection: the reference tag is wrong; the data is that of another block",
        COMPARE_FAILURE = 0x85 => "the data on the media differs from the data to compare with",
        ACCESS_DENIED = 0x86 => "access to the range is denied: it may be locked",
        UNWRITTEN_BLOCK = 0x87 =>
            "the range holds deallocated or never written blocks, and the host asked to be told",
        STORAGE_TAG_CHECK_ERROR = 0x88 => "end-to-end protection: the storage tag is wrong",
    }
    // Base 2.1 §4.2.3.4: path related.
    PATH any {
        INTERNAL_PATH_ERROR = 0x00 =>
            "the controller's path to the namespace failed internally; try another path",
        ANA_PERSISTENT_LOSS = 0x01 =>
            "this controller has lost the namespace for good (ANA persistent loss); use another path",
        ANA_INACCESSIBLE = 0x02 =>
            "the namespace is not accessible through this controller now (ANA inaccessible); use another \
             path",
        ANA_TRANSITION = 0x03 => "the namespace's ANA group is changing state; try again, or another path",
        CONTROLLER_PATHING_ERROR = 0x60 => "the controller detected a pathing error; try another path",
        HOST_PATHING_ERROR = 0x70 =>
            "the host detected a pathing error: the connection was lost with the command outstanding",
        ABORTED_BY_HOST = 0x71 => "the host gave the command up without an answer from the controller",
    }
}
