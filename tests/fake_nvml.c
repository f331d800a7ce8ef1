/* A driver to test against: libnvidia-ml.so.1, steered by the file that FAKE_NVML names.
 *
 * A line a GPU: "uuid utilization memory_used_mib memory_total_mib power_mw state", where utilization -1 means "not
 * supported" (as under MIG) and state is "ok" or "lost". No file: the driver is not loaded. nvmlDeviceGetTemperature
 * and the throttle reasons are missing on purpose: old drivers lack functions.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_LOADED = 9, GPU_LOST = 15 };
typedef struct { char uuid[80]; int use; unsigned long long used, total; int power; char state[8]; } Gpu;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;

static Gpu gpus[16];
static long handles[16];

static int load(void) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    int count = 0;
    if (!file) return -1;
    while (count < 16) {
        Gpu *g = &gpus[count];
        if (fscanf(file, "%79s %d %llu %llu %d %7s", g->uuid, &g->use, &g->used, &g->total, &g->power, g->state) != 6) break;
        count++;
    }
    fclose(file);
    return count;
}

static int find(void *handle, Gpu **gpu) {
    long index = (long *)handle - handles;
    if (index < 0 || index >= load()) return INVALID;
    *gpu = &gpus[index];
    return strcmp((*gpu)->state, "lost") ? OK : GPU_LOST;
}

#define WITH_GPU(handle) Gpu *g; int problem = find(handle, &g); if (problem) return problem

int nvmlInit_v2(void) { return load() < 0 ? NOT_LOADED : OK; }
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "a fake driver's error"; }
int nvmlDeviceGetCount_v2(unsigned int *count) {
    int found = load();
    if (found < 0) return NOT_LOADED;
    *count = (unsigned int)found;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    if ((int)index >= load()) return INVALID;
    *handle = &handles[index];
    return strcmp(gpus[index].state, "lost") ? OK : GPU_LOST;
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned int length) {
    WITH_GPU(handle); snprintf(text, length, "%s", g->uuid); return OK;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned int length) {
    WITH_GPU(handle); snprintf(text, length, "Fake GPU"); return OK;
}
int nvmlDeviceGetUtilizationRates(void *handle, Utilization *use) {
    WITH_GPU(handle);
    if (g->use < 0) return NOT_SUPPORTED;
    use->gpu = (unsigned int)g->use; use->memory = 0; return OK;
}
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    WITH_GPU(handle);
    memory->used = g->used << 20; memory->total = g->total << 20; memory->free = memory->total - memory->used; return OK;
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned int *power) {
    WITH_GPU(handle); *power = (unsigned int)g->power; return OK;
}
