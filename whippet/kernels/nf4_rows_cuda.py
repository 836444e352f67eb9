"""The kernel of ``nf4_rows.py`` in CUDA C++.

A group of warps computes 16 outputs at a time for all rows of x; its warps share the inputs, and add their sums up in a
fixed order. A warp takes four blocks of 64 inputs at once: 2 KB of codes, copied to shared memory while those before
are computed on. What one thread does with a block follows from how the tensor cores want their operands
(https://docs.nvidia.com/cuda/parallel-thread-execution, mma.m16n8k16), with inputs permuted as it suits the codes:

    thread 4g + t holds of outputs g and g + 8: codes of inputs 8t … 8t + 7 and 32 + 8t … 32 + 8t + 7, two words each
                  of row g of x: the same inputs, 16 bytes twice
    a byte of codes → two levels, which are one register of the 16 × 16 operand: shared memory holds the pair for each
                  of 256 bytes, once for each thread of a warp, so that no two threads ever meet in a bank

Macros: WARPS, GROUPS, STAGES, SPREAD, PERMUTED (``nf4_rows.Layout``); COLUMNS, groups of eight rows of x; BF16, or
else fp16; NESTED: 0, absmax is fp32, 1, doubly quantised with one offset, 2, with one for each 256 blocks; GAIN; LOW0 …
HIGH3, the low and the high bytes of the 16 levels, times GAIN. With HOST defined the file is compiled for a CPU, by
tests/kernels/nf4_rows_host.cpp, which brings its own functions for these instructions.
"""

SOURCE = r"""
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef HOST
#define DEVICE static __device__ __forceinline__
#define DYNAMIC extern __shared__ __align__(128) char dynamic[]

DEVICE u32 permute(u32 a, u32 b, u32 selector) {
    u32 bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selector));
    return bytes;
}

// Copy 16 or 4 bytes to shared memory without waiting; only the first `given` are read, the others become zero.
DEVICE void copy16(void* to, const void* from, u32 given) {
    u32 place = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 ::"r"(place), "l"(from), "r"(given) : "memory");
}

DEVICE void copy4(void* to, const void* from, u32 given) {
    u32 place = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(place), "l"(from), "r"(given) : "memory");
}

DEVICE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the newest `open` groups of this thread's copies have arrived.
template <int open> DEVICE void await_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(open) : "memory"); }

// Four matrices of 8 x 16 bytes: thread l gives the address of row l % 8 of matrix l / 8, and gets word l % 4 of row
// l / 4 of each.
DEVICE void load_matrices(u32 (&words)[4], const void* row) {
    u32 place = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(place) : "memory");
}

#if BF16
#define KIND "bf16"
#else
#define KIND "f16"
#endif
DEVICE void multiply(float (&sums)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." KIND "." KIND ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

DEVICE u16 narrow(float number) {
    u16 half;
    asm("cvt.rn." KIND ".f32 %0, %1;" : "=h"(half) : "f"(number));
    return half;
}

// Not to be put off behind what follows.
DEVICE uint4 load16(const void* from, bool exists) {
    uint4 words = make_uint4(0, 0, 0, 0);
    if (exists)
        asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w) : "l"(from));
    return words;
}

// The threads of a group wait for each other.
DEVICE void meet(int group) { asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(32 * WARPS) : "memory"); }
#endif

const int ROW = SPREAD ? 256 : 128, TABLE = 256 * ROW;
const int CODES = 16 * 128, STAGE = CODES + 128 * (NESTED == 2 ? 5 : NESTED == 1 ? 3 : 2);

// The levels of a word's eight codes by permuting bytes, as pairs: the first weight of a byte is in its high half, the
// first of a pair in the low half.
DEVICE void levels_of(u32 word, u32 (&pairs)[4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 index = word >> 16 * half, select = index & 0x7777, from_upper = permute(0xFF00, 0, (index >> 3) & 0x1111);
        u32 low = permute(LOW0, LOW1, select), high = permute(HIGH0, HIGH1, select);
        low ^= (low ^ permute(LOW2, LOW3, select)) & from_upper;
        high ^= (high ^ permute(HIGH2, HIGH3, select)) & from_upper;
        pairs[2 * half] = permute(low, high, 0x4051);
        pairs[2 * half + 1] = permute(low, high, 0x6273);
    }
}

// The same by a table in shared memory; `own` is the thread's place in its rows.
DEVICE void look_up(const char* table, u32 own, u32 word, u32 (&pairs)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if SPREAD
        u32 place = permute(word, own, 0x5504 + 16 * i);  // one instruction: a byte beside another
#else
        u32 place = ((i ? word >> (8 * i - 7) : word << 7) & 0x7F80) | own;
#endif
        pairs[i] = *(const u32*)(table + place);
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS * GROUPS, 1)
nf4_rows(const u16* x, u64 x_stride, const u8* codes, const u8* absmax, const float* nested_absmax,
         const float* nested_code, const float* offset, void* y, int wide, int num_rows, int num_outputs,
         int row_blocks) {
    __shared__ float nested_levels[256];
    DYNAMIC;
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int warp = (threadIdx.x >> 5) % WARPS, group = threadIdx.x / (32 * WARPS);
    char* own_stages = dynamic + TABLE + (group * WARPS + warp) * (STAGES * STAGE);
    float* all_sums = (float*)(dynamic + TABLE + GROUPS * WARPS * STAGES * STAGE);
    float* group_sums = all_sums + group * (2 * WARPS * COLUMNS * 128);
    const int num_tiles = (num_outputs + 15) / 16, first_tile = blockIdx.x + gridDim.x * group;
    const int step = gridDim.x * GROUPS, num_parts = (row_blocks + 3) / 4;

    // What is copied next: four blocks of 16 outputs. A thread copies 16 bytes of every fourth row, and of absmax what
    // it needs itself.
    int next_tile = warp < num_parts ? first_tile : num_tiles, next_part = warp, next_stage = 0;
    const u32 r = lane >> 3, chunk = lane & 7;
    const u8* next_codes;
    u32 next_block;  // the first of the part in the first row
    auto enter_tile = [&]() {
        next_block = 16u * next_tile * row_blocks + 4 * warp;
        next_codes = codes + (u64)(next_block + r * row_blocks) * 32 + 16 * chunk;
    };
    auto fetch_next = [&]() {
        if (next_tile < num_tiles) {
            char* stage = own_stages + next_stage * STAGE;
            char* rest = stage + CODES;
            const u32 rows = num_outputs - 16 * next_tile, blocks = row_blocks - 4 * next_part;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool exists = 4 * i + r < rows && chunk / 2 < blocks;
                // The chunks of a row change places, so that a matrix of eight rows touches every bank once.
                u32 place = 128 * r + ((16 * (chunk ^ r)) ^ (i & 1 ? 64 : 0));
                copy16(stage + 512 * i + place, next_codes + (u64)(128 * i) * row_blocks, exists ? 16 : 0);
            }
#if NESTED
            {   // Four bytes of each row of absmax, with what makes them whole words.
                u32 row = lane & 15, upper = lane >> 4, block = next_block + row * row_blocks;
                u32 at = (block & ~3u) + 4 * upper, total = (u32)num_outputs * row_blocks;
                if (row < rows && at < total && (!upper || (block & 3)))
                    copy4(rest + 8 * row + 4 * upper, absmax + at, min(total - at, 4u));
            }
#endif
#pragma unroll
            for (int i = 0; i < 2; i++) {
                bool exists = (u32)(g + 8 * i) < rows && (u32)t < blocks;
                u32 block = next_block + (g + 8 * i) * row_blocks + t, given = exists ? 4 : 0;
#if NESTED
                copy4(rest + 128 + 128 * i + 4 * lane, nested_absmax + (block >> 8), given);
#else
                copy4(rest + 128 * i + 4 * lane, absmax + 4 * (u64)block, given);
#endif
#if NESTED == 2
                copy4(rest + 384 + 128 * i + 4 * lane, offset + (block >> 8), given);
#endif
            }
            next_stage = next_stage + 1 == STAGES ? 0 : next_stage + 1;
            next_part += WARPS, next_block += 4 * WARPS, next_codes += 128 * WARPS;
            if (next_part >= num_parts) {
                next_part = warp, next_tile += step;
                enter_tile();
            }
        }
        close_copies();
    };
    enter_tile();
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) fetch_next();

    for (int i = threadIdx.x; i < 256 * 8; i += 32 * WARPS * GROUPS) {
        u32 pairs[4];
        levels_of(i / 8, pairs);
        *(uint4*)(dynamic + i / 8 * ROW + i % 8 * 16) = make_uint4(pairs[0], pairs[0], pairs[0], pairs[0]);
    }
#if NESTED
    for (int i = threadIdx.x; i < 256; i += 32 * WARPS * GROUPS) nested_levels[i] = nested_code[i];
#endif
#if NESTED == 1
    const float added = *offset;
#endif
    __syncthreads();

    // Bytes of absmax before the wanted four; the 16 rows of a tile begin at a whole word.
    const int shift = (g * row_blocks) & 3;
    const u16* own_inputs = x + g * x_stride + 8 * t;
    int stage = 0, side = 0;
    for (int tile = first_tile; tile < num_tiles; tile += step) {
        float sums[COLUMNS][4] = {};
        for (int part = warp; part < num_parts; part += WARPS) {
            // Blocks behind the last are zeros times zeros.
            const int first = 4 * part;
            const u16* part_inputs = own_inputs + 64 * (u64)first;
            uint4 inputs[4][COLUMNS][2];
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
                    bool exists = 8 * c + g < num_rows && first + j < row_blocks;
                    inputs[j][c][0] = load16(part_inputs + 8 * c * x_stride + 64 * j, exists);
                    inputs[j][c][1] = load16(part_inputs + 8 * c * x_stride + 64 * j + 32, exists);
                }
            await_copies<STAGES - 2>();
            __syncwarp();  // The copies of all threads are here, and nobody reads what was computed on before.
            fetch_next();
            const char* place = own_stages + stage * STAGE;
            const char* rest = place + CODES;
            stage = stage + 1 == STAGES ? 0 : stage + 1;

            float scales[2];  // of block t, outputs g and g + 8
#pragma unroll
            for (int i = 0; i < 2; i++) {
#if NESTED
                u8 index = *(const u8*)(rest + 8 * (g + 8 * i) + shift + t);
                float scale = *(const float*)(rest + 128 + 128 * i + 4 * lane);
#if NESTED == 2
                float added = *(const float*)(rest + 384 + 128 * i + 4 * lane);
#endif
                scales[i] = __fadd_rn(__fmul_rn(nested_levels[index], scale), added);
#else
                scales[i] = *(const float*)(rest + 128 * i + 4 * lane);
#endif
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 words[4], levels[4][4];
                load_matrices(words, place + 128 * (lane & 15) + 16 * ((2 * j + (lane >> 4)) ^ (lane & 7)));
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (i < PERMUTED) levels_of(words[i], levels[i]);
                    else look_up(dynamic, 4 * lane, words[i], levels[i]);
                float scale = __shfl_sync(0xFFFFFFFF, scales[0], (lane & 28) + j);
                float scale_8 = __shfl_sync(0xFFFFFFFF, scales[1], (lane & 28) + j);
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
                    float block[4] = {};
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const u32 (&upper)[4] = levels[2 * h], (&lower)[4] = levels[2 * h + 1];
                        const uint4 in = inputs[j][c][h];
                        multiply(block, upper[0], lower[0], upper[1], lower[1], in.x, in.y);
                        multiply(block, upper[2], lower[2], upper[3], lower[3], in.z, in.w);
                    }
                    sums[c][0] = __fmaf_rn(block[0], scale, sums[c][0]);
                    sums[c][1] = __fmaf_rn(block[1], scale, sums[c][1]);
                    sums[c][2] = __fmaf_rn(block[2], scale_8, sums[c][2]);
                    sums[c][3] = __fmaf_rn(block[3], scale_8, sums[c][3]);
                }
            }
        }
        float* tile_sums = group_sums + side * (WARPS * COLUMNS * 128);
        side ^= 1;  // Whoever is late still reads those of the tile before.
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            *(float4*)(tile_sums + (warp * COLUMNS + c) * 128 + 4 * lane) =
                make_float4(sums[c][0], sums[c][1], sums[c][2], sums[c][3]);
        meet(group);
        for (int i = threadIdx.x % (32 * WARPS); i < COLUMNS * 128; i += 32 * WARPS) {
            float total = 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) total += tile_sums[w * (COLUMNS * 128) + i];
            total *= 1 / GAIN;
            int from = i % 128 / 4;  // the thread whose sum it is
            int output = 16 * tile + from / 4 + i % 4 / 2 * 8, row = i / 128 * 8 + from % 4 * 2 + i % 2;
            u64 to = (u64)row * num_outputs + output;
            if (row < num_rows && output < num_outputs) {
                if (wide) ((float*)y)[to] = total;
                else ((u16*)y)[to] = narrow(total);
            }
        }
    }
}
"""
