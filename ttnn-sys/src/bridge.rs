//! What crosses into C++: the functions of `shim/`, as cxx sees them. Everything else of the crate wraps these.

// The docs stand on the safe layer, and cxx writes `pub` itself.
#![allow(missing_docs, unreachable_pub, clippy::missing_safety_doc, clippy::too_many_arguments)]

#[cxx::bridge(namespace = "ttnn_sys")]
pub(crate) mod ffi {
    #[derive(Debug)]
    enum DataType {
        Bf16,
        F32,
        Bfp8B,
        U32,
    }

    #[derive(Debug)]
    enum Layout {
        Tile,
        RowMajor,
    }

    #[derive(Debug)]
    enum Placement {
        /// What the operation itself chooses.
        Default,
        Dram,
        L1,
        HeightSharded,
        WidthSharded,
        BlockSharded,
    }

    /// The last four fields count only where the placement is sharded.
    #[derive(Debug, Clone, Copy)]
    struct Memory {
        placement: Placement,
        shard_height: u32,
        shard_width: u32,
        grid_x: u32,
        grid_y: u32,
    }

    #[derive(Debug)]
    enum Activation {
        None,
        Gelu,
        Silu,
    }

    #[derive(Debug)]
    enum Fidelity {
        LoFi,
        HiFi2,
        HiFi4,
    }

    #[derive(Debug, Clone, Copy)]
    struct Compute {
        fidelity: Fidelity,
        fp32_accumulate: bool,
        packer_l1_acc: bool,
        approximate: bool,
    }

    #[derive(Debug)]
    enum MatmulProgramKind {
        Auto,
        CoreGrid,
        Multicast1d,
        Multicast2d,
    }

    /// `CoreGrid` uses the grid alone, `Auto` nothing. Sizes are in tiles.
    #[derive(Debug, Clone, Copy)]
    struct MatmulProgram {
        kind: MatmulProgramKind,
        grid_x: u32,
        grid_y: u32,
        in0_block_w: u32,
        out_subblock_h: u32,
        out_subblock_w: u32,
        per_core_m: u32,
        per_core_n: u32,
        mcast_in0: bool,
        transpose_mcast: bool,
    }

    #[derive(Debug)]
    enum Fabric {
        Disabled,
        Line,
        Ring,
        Mesh,
    }

    struct MeshOptions {
        rows: u32,
        cols: u32,
        l1_small_size: usize,
        trace_region_size: usize,
        ethernet_dispatch: bool,
        fabric: Fabric,
    }

    struct MeshFacts {
        arch: String,
        grid_x: u32,
        grid_y: u32,
        dram_bytes: u64,
        l1_bytes_per_core: u32,
        device_ids: Vec<i32>,
    }

    struct TensorFacts {
        shape: Vec<u32>,
        padded_shape: Vec<u32>,
        dtype: DataType,
        layout: Layout,
        on_l1: bool,
        sharded: bool,
        planned: bool,
    }

    /// Per core and in bytes.
    struct ResourceUse {
        circular_buffers: u64,
        l1_buffers: u64,
        peak: u64,
        l1_output: u64,
    }

    /// A tensor in a list; an optional tensor is a list of none or one.
    struct TensorRef<'a> {
        tensor: &'a Tensor,
    }

    struct Padding {
        before: u32,
        after: u32,
    }

    /// A chip that another process holds; `pid` is 0 where none is.
    struct ChipOwner {
        chip: i32,
        pid: i32,
    }

    unsafe extern "C++" {
        include!("ttnn-sys/src/shim/library.hpp");
        fn library_path() -> Result<String>;
        fn chip_owner() -> Result<ChipOwner>;
        fn device_count() -> Result<usize>;
        fn arch_name() -> Result<String>;
        fn release_devices() -> Result<()>;

        include!("ttnn-sys/src/shim/mesh.hpp");
        type Mesh;
        fn open_mesh(options: &MeshOptions) -> Result<UniquePtr<Mesh>>;
        fn submesh(mesh: &Mesh, rows: u32, cols: u32, row: u32, col: u32) -> Result<UniquePtr<Mesh>>;
        fn close_mesh(mesh: &Mesh) -> Result<()>;
        fn mesh_facts(mesh: &Mesh) -> Result<MeshFacts>;
        fn synchronize(mesh: &Mesh) -> Result<()>;

        include!("ttnn-sys/src/shim/tensor.hpp");
        type Tensor;
        fn tensor_from_f32(
            mesh: &Mesh,
            values: &[f32],
            shape: &[u32],
            dtype: DataType,
            layout: Layout,
            memory: &Memory,
        ) -> Result<UniquePtr<Tensor>>;
        fn tensor_from_bf16(
            mesh: &Mesh,
            bits: &[u16],
            shape: &[u32],
            layout: Layout,
            memory: &Memory,
        ) -> Result<UniquePtr<Tensor>>;
        fn tensor_from_u32(
            mesh: &Mesh,
            values: &[u32],
            shape: &[u32],
            layout: Layout,
            memory: &Memory,
        ) -> Result<UniquePtr<Tensor>>;
        fn tensor_from_bfp8_words(
            mesh: &Mesh,
            words: &[u32],
            shape: &[u32],
            memory: &Memory,
        ) -> Result<UniquePtr<Tensor>>;
        fn empty_tensor(
            mesh: &Mesh,
            shape: &[u32],
            dtype: DataType,
            layout: Layout,
            memory: &Memory,
        ) -> Result<UniquePtr<Tensor>>;
        fn write_f32(tensor: &Tensor, values: &[f32]) -> Result<()>;
        fn write_bf16(tensor: &Tensor, bits: &[u16]) -> Result<()>;
        fn write_u32(tensor: &Tensor, values: &[u32]) -> Result<()>;
        fn write_bfp8_words(tensor: &Tensor, words: &[u32]) -> Result<()>;
        fn read_f32(tensor: &Tensor) -> Result<Vec<f32>>;
        fn read_u32(tensor: &Tensor) -> Result<Vec<u32>>;
        fn tensor_facts(tensor: &Tensor) -> Result<TensorFacts>;
        fn deallocate(tensor: &Tensor) -> Result<()>;
        fn pack_bfp8(mesh: &Mesh, values: &[f32], shape: &[u32]) -> Result<Vec<u32>>;
        fn unpack_bfp8(mesh: &Mesh, words: &[u32], shape: &[u32]) -> Result<Vec<f32>>;

        include!("ttnn-sys/src/shim/matmul.hpp");
        fn linear(
            x: &Tensor,
            weight: &Tensor,
            bias: &[TensorRef],
            activation: Activation,
            dtype: DataType,
            memory: &Memory,
            compute: &Compute,
            program: &MatmulProgram,
        ) -> Result<UniquePtr<Tensor>>;

        include!("ttnn-sys/src/shim/transformer.hpp");
        type Heads;
        fn layer_norm(
            x: &Tensor,
            weight: &Tensor,
            bias: &Tensor,
            epsilon: f32,
            compute: &Compute,
        ) -> Result<UniquePtr<Tensor>>;
        fn rms_norm(
            x: &Tensor,
            weight: &[TensorRef],
            epsilon: f32,
            compute: &Compute,
        ) -> Result<UniquePtr<Tensor>>;
        fn embedding(ids: &Tensor, table: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn split_heads(x: &Tensor, heads: u32, kv_heads: u32) -> Result<UniquePtr<Heads>>;
        fn q(self: &Heads) -> UniquePtr<Tensor>;
        fn k(self: &Heads) -> UniquePtr<Tensor>;
        fn v(self: &Heads) -> UniquePtr<Tensor>;
        fn concat_heads(x: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn attention(
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            mask: &[TensorRef],
            scale: f32,
            q_chunk: u32,
            k_chunk: u32,
            compute: &Compute,
        ) -> Result<UniquePtr<Tensor>>;

        include!("ttnn-sys/src/shim/elementwise.hpp");
        fn add(a: &Tensor, b: &Tensor, on_output: Activation) -> Result<UniquePtr<Tensor>>;
        fn multiply(a: &Tensor, b: &Tensor, on_a: Activation) -> Result<UniquePtr<Tensor>>;
        fn add_scalar(x: &Tensor, value: f32) -> Result<UniquePtr<Tensor>>;
        fn multiply_scalar(x: &Tensor, value: f32) -> Result<UniquePtr<Tensor>>;
        fn gelu(x: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn silu(x: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn typecast(x: &Tensor, dtype: DataType) -> Result<UniquePtr<Tensor>>;

        include!("ttnn-sys/src/shim/movement.hpp");
        fn concat(parts: &[TensorRef], dim: i32) -> Result<UniquePtr<Tensor>>;
        fn slice(x: &Tensor, begin: &[u32], end: &[u32]) -> Result<UniquePtr<Tensor>>;
        fn reshape(x: &Tensor, shape: &[u32]) -> Result<UniquePtr<Tensor>>;
        fn permute(x: &Tensor, dims: &[u32]) -> Result<UniquePtr<Tensor>>;
        fn pad(x: &Tensor, padding: &[Padding], value: f32) -> Result<UniquePtr<Tensor>>;
        fn to_layout(x: &Tensor, layout: Layout) -> Result<UniquePtr<Tensor>>;
        fn to_memory(x: &Tensor, memory: &Memory) -> Result<UniquePtr<Tensor>>;
        fn copy(from: &Tensor, into: &Tensor) -> Result<()>;

        include!("ttnn-sys/src/shim/replay.hpp");
        fn begin_trace(mesh: &Mesh) -> Result<u32>;
        fn end_trace(mesh: &Mesh, trace: u32) -> Result<()>;
        fn execute_trace(mesh: &Mesh, trace: u32, blocking: bool) -> Result<()>;
        fn release_trace(mesh: &Mesh, trace: u32) -> Result<()>;
        type Event;
        fn record_event(mesh: &Mesh) -> Result<UniquePtr<Event>>;
        fn wait_for_event(event: &Event) -> Result<()>;

        include!("ttnn-sys/src/shim/socket.hpp");
        type Socket;
        type SocketPair;
        fn socket_pair(sender: &Mesh, receiver: &Mesh, buffer_bytes: u32) -> Result<UniquePtr<SocketPair>>;
        fn sender(self: &SocketPair) -> UniquePtr<Socket>;
        fn receiver(self: &SocketPair) -> UniquePtr<Socket>;
        fn send(tensor: &Tensor, socket: &Socket) -> Result<()>;
        fn receive(tensor: &Tensor, socket: &Socket) -> Result<()>;

        include!("ttnn-sys/src/shim/query.hpp");
        type Query;
        fn begin_query() -> Result<UniquePtr<Query>>;
        fn end_query(query: &Query, mesh: &Mesh, output: &Tensor) -> Result<ResourceUse>;
    }
}
