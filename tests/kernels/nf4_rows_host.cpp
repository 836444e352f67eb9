// The CUDA source of nf4_rows (whippet/kernels/nf4_rows_cuda.py) on a CPU: every thread of a block is a coroutine, and
// the instructions that CUDA has and C++ has not are written out by their definitions in the PTX manual.
//
// Made to find faults: shared memory begins as garbage, copies arrive no earlier than they are awaited, the order in
// which threads go on is drawn anew at each step, and some warps sleep while others go as far as they can.
#define HOST
#define __global__
#define __launch_bounds__(threads, blocks)
#define __shared__ static
#define DEVICE static inline
#define DYNAMIC char* const dynamic = arena

#include <ucontext.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

struct uint4 { unsigned x, y, z, w; };
struct float4 { float x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }

struct Copy { char* to; const char* from; unsigned size, given; };
struct Thread {
    unsigned x;  // threadIdx.x
    ucontext_t context;
    bool ended;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
    long* awaited;
    long generation;
};
struct Meeting { unsigned arrived = 0; long generation = 0; };

static std::vector<Thread> threads;
static Thread* current;
static ucontext_t scheduler;
static Meeting block_meeting, group_meetings[16], warp_meetings[64];
static unsigned values[64][32][8];  // of a warp's threads, for each other
static const void* addresses[64][32];
static struct { unsigned x; } blockIdx, gridDim;
static const char *inputs_begin, *inputs_end;
static int fault;  // 1: threads wait for ever; 2: an address that is not aligned; 3: one outside of x
#define threadIdx (*current)
alignas(128) static char arena[256 * 1024];
static const unsigned BLOCK_THREADS = 32 * WARPS * GROUPS;

static void meet(Meeting& meeting, unsigned count) {
    if (++meeting.arrived == count) {
        meeting.arrived = 0;
        meeting.generation++;
        return;
    }
    current->awaited = &meeting.generation;
    current->generation = meeting.generation;
    swapcontext(&current->context, &scheduler);
}

static unsigned warp() { return current->x / 32; }
static unsigned lane() { return current->x % 32; }
static void __syncwarp() { meet(warp_meetings[warp()], 32); }
static void __syncthreads() { meet(block_meeting, BLOCK_THREADS); }
static void meet(int group) { meet(group_meetings[group], 32 * WARPS); }

static float __shfl_sync(unsigned, float value, int from) {
    std::memcpy(&values[warp()][lane()][0], &value, 4);
    __syncwarp();
    std::memcpy(&value, &values[warp()][from][0], 4);
    __syncwarp();
    return value;
}

static unsigned permute(unsigned a, unsigned b, unsigned selector) {
    uint64_t bytes = a | (uint64_t)b << 32;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned choice = selector >> 4 * i & 15, byte = bytes >> 8 * (choice & 7) & 255;
        result |= (choice & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return result;
}

static void copy(void* to, const void* from, unsigned size, unsigned given) {
    if ((uintptr_t)to % size || (given && (uintptr_t)from % size)) fault = 2;
    current->open.push_back({(char*)to, (const char*)from, size, given});
}
static void copy16(void* to, const void* from, unsigned given) { copy(to, from, 16, given); }
static void copy4(void* to, const void* from, unsigned given) { copy(to, from, 4, given); }
static void close_copies() {
    current->groups.push_back(current->open);
    current->open.clear();
}
template <int open> static void await_copies() {
    auto& groups = current->groups;
    while (groups.size() > open) {
        for (auto& one : groups.front()) {
            std::memset(one.to, 0, one.size);
            if (one.given) std::memcpy(one.to, one.from, one.given);
        }
        groups.erase(groups.begin());
    }
}

static void load_matrices(unsigned (&words)[4], const void* row) {
    if ((uintptr_t)row % 16) fault = 2;
    addresses[warp()][lane()] = row;
    __syncwarp();
    for (int i = 0; i < 4; i++)
        std::memcpy(&words[i], (const char*)addresses[warp()][8 * i + lane() / 4] + lane() % 4 * 4, 4);
    __syncwarp();
}

static float widened(unsigned half) {
    half &= 0xFFFF;
    float number;
#if BF16
    unsigned bits = half << 16;
    std::memcpy(&number, &bits, 4);
#else
    _Float16 short_number;
    std::memcpy(&short_number, &half, 2);
    number = short_number;
#endif
    return number;
}
static unsigned short narrow(float number) {
#if BF16
    unsigned bits;
    std::memcpy(&bits, &number, 4);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
#else
    _Float16 half = number;
    unsigned short bits;
    std::memcpy(&bits, &half, 2);
    return bits;
#endif
}

// m16n8k16, row g = lane / 4 and t = lane % 4: a0 (g, 2t), a1 (g + 8, 2t), a2 (g, 2t + 8), a3 (g + 8, 2t + 8);
// b0 (2t, g), b1 (2t + 8, g); sums (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
static void multiply(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    unsigned given[6] = {a0, a1, a2, a3, b0, b1};
    std::memcpy(values[warp()][lane()], given, sizeof given);
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            unsigned a = values[warp()][row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
            unsigned b = values[warp()][column * 4 + k % 8 / 2][4 + k / 8];
            sums[i] += widened(a >> k % 2 * 16) * widened(b >> k % 2 * 16);
        }
    }
    __syncwarp();
}

static uint4 load16(const void* from, bool exists) {
    uint4 words = {0, 0, 0, 0};
    if (!exists) return words;
    if ((uintptr_t)from % 16) fault = 2;
    if (from < inputs_begin || (const char*)from + 16 > inputs_end) fault = 3;
    else std::memcpy(&words, from, 16);
    return words;
}
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

#include "nf4_rows.cu"

static std::function<void()> body;
static void enter() {
    body();
    current->ended = true;
    swapcontext(&current->context, &scheduler);
}

// The kernel's arguments behind the number of blocks and the bytes of shared memory. Returns `fault`.
extern "C" int run(unsigned blocks, unsigned shared, const u16* x, u64 x_stride, const u8* codes, const u8* absmax,
                   const float* nested_absmax, const float* nested_code, const float* offset, void* y, int wide,
                   int num_rows, int num_outputs, int row_blocks) {
    const size_t stack = 1 << 16;
    std::vector<char> stacks(stack * BLOCK_THREADS);
    std::mt19937 draw(7);
    gridDim.x = blocks;
    fault = 0;
    inputs_begin = (const char*)x, inputs_end = (const char*)(x + (num_rows - 1) * x_stride + 64 * (u64)row_blocks);
    body = [=] {
        nf4_rows(x, x_stride, codes, absmax, nested_absmax, nested_code, offset, y, wide, num_rows, num_outputs, row_blocks);
    };
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        std::memset(arena, 255, shared);
        threads.assign(BLOCK_THREADS, Thread());
        for (unsigned i = 0; i < BLOCK_THREADS; i++) {
            Thread& thread = threads[i];
            thread.x = i;
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = stacks.data() + stack * i;
            thread.context.uc_stack.ss_size = stack;
            makecontext(&thread.context, enter, 0);
        }
        bool asleep[64] = {};
        for (unsigned step = 0;; step++) {
            std::vector<Thread*> ready, awake;
            bool waiting = false;
            for (auto& thread : threads) {
                bool held = thread.awaited && *thread.awaited == thread.generation;
                waiting |= !thread.ended;
                if (thread.ended || held) continue;
                ready.push_back(&thread);
                if (!asleep[thread.x / 32]) awake.push_back(&thread);
            }
            if (!waiting) break;
            if (ready.empty()) return 1;
            if (awake.empty() || step % 256 == 0) {
                for (bool& one : asleep) one = draw() % 2;
                if (awake.empty()) awake = ready;
            }
            std::shuffle(awake.begin(), awake.end(), draw);
            for (Thread* thread : awake) {
                current = thread;
                thread->awaited = nullptr;
                swapcontext(&scheduler, &thread->context);
            }
        }
    }
    return fault;
}
