//! `open_enum!`: enumerations from the wire that keep values nobody has named yet.
//!
//! A closed Rust `enum` would force every parser either to reject a value that a newer specification
//! defines, or to lose it. An open enum is a newtype over the integer with associated constants, so the
//! value survives a round trip and still prints as something readable.

/// Defines an open enumeration: a transparent newtype with named constants and their display text.
///
/// ```text
/// open_enum! {
///     /// Transport type.
///     pub struct TransportTypeCode(u8) {
///         /// RDMA.
///         RDMA = 1 => "rdma",
///     }
/// }
/// ```
///
/// The type gets `name()`, `Display` (the text, or `unknown (0x..)`), `Debug` (the constant's name, or
/// `Type(0x..)`) and the zerocopy traits. 16- and 32-bit types hold native integers: in wire structures keep
/// `U16`/`U32` and convert in an accessor.
macro_rules! open_enum {
    ($(#[$meta:meta])* $vis:vis struct $name:ident(u8) { $($body:tt)* }) => {
        open_enum! { @define [#[derive(::zerocopy::Unaligned)]] $(#[$meta])* $vis struct $name(u8) { $($body)* } }
    };
    ($(#[$meta:meta])* $vis:vis struct $name:ident($repr:ident) { $($body:tt)* }) => {
        open_enum! { @define [] $(#[$meta])* $vis struct $name($repr) { $($body)* } }
    };
    (@define [$(#[$extra:meta])*] $(#[$meta:meta])* $vis:vis struct $name:ident($repr:ident) {
        $($(#[$const_meta:meta])* $konst:ident = $value:expr => $text:expr,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable, ::zerocopy::KnownLayout)]
        $(#[$extra])*
        #[repr(transparent)]
        $vis struct $name(
            /// The value on the wire.
            $vis $repr,
        );

        impl $name {
            $($(#[$const_meta])* $vis const $konst: Self = Self($value);)*

            /// Every named value, in the order of the definition.
            $vis const ALL: &'static [Self] = &[$(Self::$konst),*];

            /// The text of a named value; `None` for a value without a name.
            #[must_use]
            $vis const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$konst => Some($text),)*
                    _ => None,
                }
            }
        }

        impl ::core::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                match *self {
                    $(Self::$konst => f.write_str(stringify!($konst)),)*
                    Self(value) => write!(f, concat!(stringify!($name), "({:#x})"), value),
                }
            }
        }

        impl ::core::fmt::Display for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                match self.name() {
                    Some(text) => f.pad(text),
                    None => f.pad(&format!("unknown ({:#x})", self.0)),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    open_enum! {
        /// For the tests.
        pub(super) struct Narrow(u8) {
            /// One.
            ONE = 1 => "the one",
            /// Two.
            TWO = 2 => "the two",
        }
    }

    open_enum! {
        /// For the tests.
        pub(super) struct Wide(u32) {
            /// Big.
            BIG = 0x8000_0000 => "big",
        }
    }

    #[test]
    fn named_values_print_their_text() {
        assert_eq!(Narrow::ONE.name(), Some("the one"));
        assert_eq!(Narrow(2).to_string(), "the two");
        assert_eq!(format!("{:?}", Narrow(2)), "TWO");
        assert_eq!(format!("{:>8}|", Narrow(1)), " the one|");
        assert_eq!(Narrow::ALL, [Narrow(1), Narrow(2)]);
        assert_eq!(Wide::ALL, [Wide(0x8000_0000)]);
    }

    #[test]
    fn unnamed_values_survive() {
        assert_eq!(Narrow(0xab).name(), None);
        assert_eq!(Narrow(0xab).to_string(), "unknown (0xab)");
        assert_eq!(format!("{:?}", Narrow(0xab)), "Narrow(0xab)");
        assert_eq!(format!("{:?}", Wide(7)), "Wide(0x7)");
        for value in 0..=u8::MAX {
            assert_eq!(zerocopy::IntoBytes::as_bytes(&Narrow(value)), [value]);
        }
    }
}
