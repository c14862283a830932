/* A double of NVML: the entry points that muplan calls, for one GPU whose state is a file.
 *
 * The file, named by NVML_DOUBLE_STATE, is an array of 64-bit integers shared by every process that loads this
 * library: a clock locked by one that was killed stays locked, as on a GPU. Signatures and codes are those of
 * nvml.h. With -DOLD the entry points that old drivers lack are left out.
 */

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15
};

/* The order is that of State in tests/nvml_state.py. */
struct state {
    int64_t locked_mhz, num_locks, num_resets; /* what was done to it; locked_mhz 0: the driver chooses */
    int64_t denied, lost, partitioned, num_processes; /* faults */
    int64_t held_mhz;  /* a limit above which the clock does not come; 0: none */
    int64_t reasons;   /* clock-event reasons */
    int64_t power_mw, temperature_c;
    int64_t no_driver;
};

static struct state *state;
static const unsigned lowest_mhz = 345, highest_mhz = 1980, step_mhz = 15;
static const unsigned memory_clocks_mhz[] = {2619, 3201};

typedef void *device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } process_t;
typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} pci_t;

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!state) {
        const char *path = getenv("NVML_DOUBLE_STATE");
        int file = path ? open(path, O_RDWR) : -1;
        if (file < 0) return DRIVER_NOT_LOADED;
        state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (state == MAP_FAILED) abort();
    }
    return state->no_driver ? DRIVER_NOT_LOADED : SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    switch (code) {
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

static int answer(device_t device) {
    if (device != state) return INVALID_ARGUMENT;
    return state->lost ? GPU_IS_LOST : SUCCESS;
}

#define ANSWERING(device)              \
    do {                               \
        int code = answer(device);     \
        if (code != SUCCESS) return code; \
    } while (0)

static unsigned clock_mhz(void) {
    int64_t clock = state->locked_mhz ? state->locked_mhz : highest_mhz;
    return (unsigned)(state->held_mhz && clock > state->held_mhz ? state->held_mhz : clock);
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "580.00", size); return SUCCESS; }
int nvmlSystemGetNVMLVersion(char *text, unsigned size) { strncpy(text, "13.580.00", size); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device) {
    if (index) return INVALID_ARGUMENT;
    *device = state;
    return state->lost ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *device) {
    return strcmp(uuid, "GPU-double") ? INVALID_ARGUMENT : nvmlDeviceGetHandleByIndex_v2(0, device);
}

int nvmlDeviceGetName(device_t device, char *text, unsigned size) {
    ANSWERING(device);
    strncpy(text, "NVIDIA H200", size);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(device_t device, pci_t *info) {
    ANSWERING(device);
    memset(info, 0, sizeof *info);
    info->bus = 0x41;
    strcpy(info->bus_id, "00000000:41:00.0");
    return SUCCESS;
}

int nvmlDeviceGetSupportedMemoryClocks(device_t device, unsigned *count, unsigned *clocks) {
    ANSWERING(device);
    unsigned size = sizeof memory_clocks_mhz / sizeof *memory_clocks_mhz;
    int fits = clocks && *count >= size;
    if (fits) memcpy(clocks, memory_clocks_mhz, sizeof memory_clocks_mhz);
    *count = size;
    return fits ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetSupportedGraphicsClocks(device_t device, unsigned memory, unsigned *count, unsigned *clocks) {
    ANSWERING(device);
    unsigned size = (highest_mhz - lowest_mhz) / step_mhz + 1;
    int fits = clocks && *count >= size;
    if (memory != 2619 && memory != 3201) return INVALID_ARGUMENT;
    for (unsigned place = 0; fits && place < size; place++) clocks[place] = highest_mhz - place * step_mhz;
    *count = size;
    return fits ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetEnforcedPowerLimit(device_t device, unsigned *milliwatts) {
    ANSWERING(device);
    *milliwatts = 700000;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(device_t device, memory_t *memory) {
    ANSWERING(device);
    memory->total = 150754820096ULL;
    memory->used = 1ULL << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(device_t device, unsigned *milliwatts) {
    ANSWERING(device);
    *milliwatts = (unsigned)state->power_mw;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(device_t device, unsigned type, unsigned *clock) {
    ANSWERING(device);
    if (type != 1) return NOT_SUPPORTED; /* NVML_CLOCK_SM */
    *clock = clock_mhz();
    return SUCCESS;
}

int nvmlDeviceGetTemperature(device_t device, unsigned sensor, unsigned *celsius) {
    ANSWERING(device);
    if (sensor) return INVALID_ARGUMENT;
    *celsius = (unsigned)state->temperature_c;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t device, unsigned long long *reasons) {
    ANSWERING(device);
    *reasons = (unsigned long long)state->reasons;
    return SUCCESS;
}

#ifndef OLD
int nvmlDeviceGetCurrentClocksEventReasons(device_t device, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksThrottleReasons(device, reasons);
}

int nvmlDeviceGetMigMode(device_t device, unsigned *current, unsigned *pending) {
    ANSWERING(device);
    *current = *pending = (unsigned)state->partitioned;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned *count, process_t *processes) {
    ANSWERING(device);
    unsigned size = (unsigned)state->num_processes;
    int fits = !size || (processes && *count >= size);
    for (unsigned place = 0; processes && fits && place < size; place++)
        processes[place] = (process_t){.pid = 1000 + place};
    *count = size;
    return fits ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetTotalEnergyConsumption(device_t device, unsigned long long *millijoules) {
    ANSWERING(device);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *millijoules = (unsigned long long)((double)state->power_mw * ((double)now.tv_sec + now.tv_nsec * 1e-9));
    return SUCCESS;
}
#endif

int nvmlDeviceSetGpuLockedClocks(device_t device, unsigned lowest, unsigned highest) {
    ANSWERING(device);
    if (state->denied) return NO_PERMISSION;
    if (lowest != highest || lowest < lowest_mhz || highest > highest_mhz) return INVALID_ARGUMENT;
    state->locked_mhz = highest;
    state->num_locks++;
    return SUCCESS;
}

int nvmlDeviceResetGpuLockedClocks(device_t device) {
    ANSWERING(device);
    if (state->denied) return NO_PERMISSION;
    state->locked_mhz = 0;
    state->num_resets++;
    return SUCCESS;
}
