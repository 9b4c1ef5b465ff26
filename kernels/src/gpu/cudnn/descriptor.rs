//! Descriptors, in whose attributes cuDNN's graph API is told everything. Numbers are those of `cudnn_graph.h`.

use std::ffi::{c_int, c_void};

use super::library::{Library, Opaque};

/// A kind of descriptor: `CUDNN_BACKEND_.._DESCRIPTOR`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Pointwise = 0,
    Convolution = 1,
    Engine = 2,
    EngineConfig = 3,
    EngineHeuristics = 4,
    ExecutionPlan = 5,
    OperationConvolution = 10,
    OperationPointwise = 13,
    OperationGraph = 15,
    VariantPack = 16,
    Tensor = 17,
    Matmul = 18,
    OperationMatmul = 19,
    Reduction = 21,
    OperationReduction = 22,
    KernelCache = 34,
    DeviceProperties = 38,
}

/// What type an attribute's elements have: `CUDNN_TYPE_..`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Type {
    Handle = 0,
    Data = 1,
    Boolean = 2,
    Int64 = 3,
    Float = 4,
    Pointer = 6,
    ConvolutionMode = 7,
    HeuristicMode = 8,
    NumericalNote = 11,
    PointwiseMode = 14,
    Descriptor = 15,
    ReductionOperator = 18,
    Char = 24,
}

/// A number of `cudnnBackendAttributeName_t`.
pub(super) type Attribute = c_int;

/// Owns a descriptor of cuDNN's.
pub(super) struct Descriptor {
    library: &'static Library,
    kind: Kind,
    opaque: Opaque,
}

// SAFETY: a descriptor is memory of the process, bound to no thread; `&Descriptor` only reads it.
unsafe impl Send for Descriptor {}
// SAFETY: as above.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    pub(super) fn new(library: &'static Library, kind: Kind) -> Result<Self, String> {
        let mut opaque = std::ptr::null_mut();
        // SAFETY: room for the descriptor.
        let status = unsafe { (library.create_descriptor)(kind as c_int, &raw mut opaque) };
        library.check(status, || format!("creating {kind:?}"))?;
        Ok(Self { library, kind, opaque })
    }

    pub(super) fn opaque(&self) -> Opaque {
        self.opaque
    }

    /// # Safety
    /// `T` must be what C has for elements of type `of`.
    unsafe fn set<T>(self, attribute: Attribute, of: Type, values: &[T]) -> Result<Self, String> {
        let (count, values) = (values.len() as i64, values.as_ptr().cast());
        // SAFETY: as many values of this type, which cuDNN copies.
        let status =
            unsafe { (self.library.set_attribute)(self.opaque, attribute, of as c_int, count, values) };
        self.library.check(status, || format!("attribute {attribute} of {:?}", self.kind))?;
        Ok(self)
    }

    pub(super) fn ints(self, attribute: Attribute, values: &[i64]) -> Result<Self, String> {
        // SAFETY: `int64_t` is `i64`.
        unsafe { self.set(attribute, Type::Int64, values) }
    }

    /// A value of one of the enums: a data type, a mode, an operator.
    pub(super) fn number(self, attribute: Attribute, of: Type, value: c_int) -> Result<Self, String> {
        // SAFETY: C's enums are `c_int`.
        unsafe { self.set(attribute, of, &[value]) }
    }

    pub(super) fn boolean(self, attribute: Attribute, value: bool) -> Result<Self, String> {
        // SAFETY: C's `bool` is `bool`.
        unsafe { self.set(attribute, Type::Boolean, &[value]) }
    }

    pub(super) fn float(self, attribute: Attribute, value: f32) -> Result<Self, String> {
        // SAFETY: `float` is `f32`.
        unsafe { self.set(attribute, Type::Float, &[value]) }
    }

    pub(super) fn text(self, attribute: Attribute, value: &str) -> Result<Self, String> {
        // SAFETY: characters are bytes.
        unsafe { self.set(attribute, Type::Char, value.as_bytes()) }
    }

    pub(super) fn handle(self, attribute: Attribute, value: Opaque) -> Result<Self, String> {
        // SAFETY: a handle is a pointer.
        unsafe { self.set(attribute, Type::Handle, &[value]) }
    }

    pub(super) fn pointers(self, attribute: Attribute, values: &[*const c_void]) -> Result<Self, String> {
        // SAFETY: pointers are pointers.
        unsafe { self.set(attribute, Type::Pointer, values) }
    }

    /// Other descriptors, which have to stay as long as this one.
    pub(super) fn descriptors(self, attribute: Attribute, values: &[&Self]) -> Result<Self, String> {
        let values: Vec<Opaque> = values.iter().map(|d| d.opaque).collect();
        // SAFETY: a descriptor is a pointer.
        unsafe { self.set(attribute, Type::Descriptor, &values) }
    }

    /// Ends the setting of attributes; cuDNN checks them.
    pub(super) fn finish(self) -> Result<Self, String> {
        // SAFETY: a descriptor that is not finished.
        let status = unsafe { (self.library.finalize)(self.opaque) };
        self.library.check(status, || format!("{:?}", self.kind))?;
        Ok(self)
    }

    /// At most `most` elements of an attribute of a finished descriptor; of descriptors, into those in `values`.
    ///
    /// # Safety
    /// `T` must be what C has for elements of type `of`.
    unsafe fn get<T>(&self, attribute: Attribute, of: Type, values: &mut [T]) -> Result<usize, String> {
        let mut count = 0;
        let (most, to) = (values.len() as i64, values.as_mut_ptr().cast());
        // SAFETY: room for as many elements of this type.
        let status = unsafe {
            (self.library.get_attribute)(self.opaque, attribute, of as c_int, most, &raw mut count, to)
        };
        self.library.check(status, || format!("reading attribute {attribute} of {:?}", self.kind))?;
        Ok(usize::try_from(count).unwrap_or(0).min(values.len()))
    }

    pub(super) fn get_int(&self, attribute: Attribute) -> Result<i64, String> {
        let mut value = [0];
        // SAFETY: `int64_t` is `i64`.
        unsafe { self.get(attribute, Type::Int64, &mut value) }?;
        Ok(value[0])
    }

    /// Values of an enum, 16 at most.
    pub(super) fn get_numbers(&self, attribute: Attribute, of: Type) -> Result<Vec<c_int>, String> {
        let mut values = vec![0; 16];
        // SAFETY: C's enums are `c_int`.
        let count = unsafe { self.get(attribute, of, &mut values) }?;
        values.truncate(count);
        Ok(values)
    }

    /// Descriptors of a kind, `most` at most.
    pub(super) fn get_descriptors(
        &self,
        attribute: Attribute,
        kind: Kind,
        most: usize,
    ) -> Result<Vec<Self>, String> {
        let rooms = (0..most).map(|_| Self::new(self.library, kind)).collect::<Result<Vec<_>, _>>()?;
        let mut opaques: Vec<Opaque> = rooms.iter().map(|d| d.opaque).collect();
        // SAFETY: a descriptor is a pointer. cuDNN fills those that are given.
        let count = unsafe { self.get(attribute, Type::Descriptor, &mut opaques) }?;
        Ok(rooms.into_iter().take(count).collect())
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it is this one's own, and nobody has it any more. There is nobody to tell of an error.
        unsafe { (self.library.destroy_descriptor)(self.opaque) };
    }
}
