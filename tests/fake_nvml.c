/* A driver to test against: libnvidia-ml.so.1, steered live by the file that FAKE_NVML names.
 *
 * A line a GPU: "uuid utilization memory_used_mib memory_total_mib power_mw state [key=value ...]".
 *   utilization  -1: not supported
 *   state        ok
 *                mig      utilization is not supported
 *                lost     not even a handle is given (error 15)
 *                gone     a handle is given, every call fails with error 15
 *                broken   a handle is given, every call fails with error 999
 *                hang     every call blocks until the file says otherwise
 *   keys         temp, limit, throttle, sm, mem, ecc: not supported where missing; xid=48,79: all that it ever reported
 * No file: the driver is not loaded. Compiled with -DOLD it lacks what old drivers lack.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_LOADED = 9, TIMEOUT = 10, GPU_LOST = 15, UNKNOWN = 999 };
enum { MOST = 16, XID_EVENT = 8 };
typedef struct {
    char uuid[80]; int use; unsigned long long used, total; int power; char state[8];
    long temp, limit, throttle, sm, mem, ecc; int xids; unsigned long long xid[64];
} Gpu;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { void *device; unsigned long long type, data; unsigned int gpu, compute; } Event;

static Gpu gpus[MOST];
static long handles[MOST];
static int told[MOST], registered[MOST], set;

static long value(const char *line, const char *key) {
    const char *found = strstr(line, key);
    return found ? atol(found + strlen(key)) : -1;
}

static int load(void) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[1024];
    int count = 0;
    if (!file) return -1;
    while (count < MOST && fgets(line, sizeof line, file)) {
        Gpu *g = &gpus[count];
        if (sscanf(line, "%79s %d %llu %llu %d %7s", g->uuid, &g->use, &g->used, &g->total, &g->power, g->state) != 6) continue;
        g->temp = value(line, " temp="); g->limit = value(line, " limit="); g->throttle = value(line, " throttle=");
        g->sm = value(line, " sm="); g->mem = value(line, " mem="); g->ecc = value(line, " ecc=");
        g->xids = 0;
        char *codes = strstr(line, " xid=");
        for (codes = codes ? codes + 5 : NULL; codes && g->xids < 64; codes = strchr(codes, ',') ? strchr(codes, ',') + 1 : NULL)
            g->xid[g->xids++] = strtoull(codes, NULL, 10);
        if (!strcmp(g->state, "mig")) g->use = -1;
        count++;
    }
    fclose(file);
    return count;
}

static int find(void *handle, Gpu **gpu) {
    long index = (long *)handle - handles;
    for (;;) {
        if (index < 0 || index >= load()) return INVALID;
        *gpu = &gpus[index];
        if (strcmp((*gpu)->state, "hang")) break;
        usleep(10000);
    }
    if (!strcmp((*gpu)->state, "lost") || !strcmp((*gpu)->state, "gone")) return GPU_LOST;
    return strcmp((*gpu)->state, "broken") ? OK : UNKNOWN;
}

#define WITH_GPU(handle) Gpu *g; int problem = find(handle, &g); if (problem) return problem
#define TELL(number, target) do { if ((number) < 0) return NOT_SUPPORTED; *(target) = (number); return OK; } while (0)

int nvmlInit_v2(void) { return load() < 0 ? NOT_LOADED : OK; }
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { memset(registered, 0, sizeof registered); return OK; }
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
    WITH_GPU(handle); use->memory = 0; TELL(g->use, &use->gpu);
}
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    WITH_GPU(handle);
    memory->used = g->used << 20; memory->total = g->total << 20; memory->free = memory->total - memory->used; return OK;
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned int *power) { WITH_GPU(handle); TELL(g->power, power); }

#ifndef OLD
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned int *celsius) {
    WITH_GPU(handle); (void)sensor; TELL(g->temp, celsius);
}
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned int *limit) { WITH_GPU(handle); TELL(g->limit, limit); }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
    WITH_GPU(handle); TELL(g->throttle, reasons);
}
int nvmlDeviceGetClockInfo(void *handle, int kind, unsigned int *mhz) {
    WITH_GPU(handle);
    if (kind == 1) TELL(g->sm, mhz);
    if (kind == 2) TELL(g->mem, mhz);
    return INVALID;
}
int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *count) {
    WITH_GPU(handle);
    if (kind != 1 || counter != 0) return INVALID; /* uncorrected ones, since the driver started */
    TELL(g->ecc, count);
}
int nvmlEventSetCreate(void **made) { *made = &set; return OK; }
int nvmlEventSetFree(void *freed) { (void)freed; return OK; }
int nvmlDeviceRegisterEvents(void *handle, unsigned long long kinds, void *into) {
    WITH_GPU(handle);
    if (into != &set || kinds != XID_EVENT) return INVALID;
    registered[(long *)handle - handles] = 1;
    told[(long *)handle - handles] = g->xids; /* it reports what comes from here on */
    return OK;
}
int nvmlEventSetWait_v2(void *from, Event *event, unsigned int milliseconds) {
    int count = load();
    if (from != &set || milliseconds) return INVALID; /* the runner must not wait here */
    for (int i = 0; i < count; i++)
        if (registered[i] && told[i] < gpus[i].xids) {
            event->device = &handles[i]; event->type = XID_EVENT; event->data = gpus[i].xid[told[i]++];
            return OK;
        }
    return TIMEOUT;
}
#endif
