package gce

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"github.com/kimage-project/kimage/pkg/cluster"
)

// First-boot systems, as an OS file names them.
const (
	Ignition  = "ignition"
	CloudInit = "cloud-init"
)

// ConfigObject is where the config of a node or pool lies in the bucket: below the role
// whose service account reads it, under a name that another config does not have.
func ConfigObject(clusterID string, t cluster.Target, config []byte) string {
	const digits = 12
	return prefix(clusterID, roleOf(t), t.Name+"-"+sum(config)[:digits])
}

// UserData is what an instance's metadata holds in place of its config: where in the
// bucket that lies, and its digest. Whoever can read metadata learns nothing, and whoever
// can write to the bucket cannot change what a machine becomes.
func UserData(firstBoot, bucket, object string, config []byte) ([]byte, error) {
	switch firstBoot {
	case Ignition:
		return ignitionStub(bucket, object, config)
	case CloudInit:
		return cloudInitStub(bucket, object, config), nil
	}
	return nil, fmt.Errorf("BUG: no first-boot system is called %q", firstBoot)
}

// ignitionStub is replaced by the config: Ignition's gcp platform gets gs:// as the
// instance's service account. 3.3 is what kimage config writes, too.
func ignitionStub(bucket, object string, config []byte) ([]byte, error) {
	type (
		verification struct {
			Hash string `json:"hash"`
		}
		resource struct {
			Source       string       `json:"source"`
			Verification verification `json:"verification"`
		}
		replace struct {
			Replace resource `json:"replace"`
		}
		ignition struct {
			Version string  `json:"version"`
			Config  replace `json:"config"`
		}
	)
	hash := sha512.Sum512(config)
	data, err := json.Marshal(map[string]ignition{"ignition": {"3.3.0", replace{resource{
		(&url.URL{Scheme: "gs", Host: bucket, Path: "/" + object}).String(), verification{"sha512-" + hex.EncodeToString(hash[:])}}}}})
	return append(data, '\n'), err
}

// boothook runs when cloud-init has read its user data and before it acts on it. The
// config is any cloud-config, people's snippets in it too, so it is not for a script to
// carry out: it is put where cloud-init has its own settings, which cloud-init reads once
// more right after boothooks ran. #include cannot do it, for it sends no token. python3 is
// there because cloud-init is. The file stays, with the mode and for the readers of the
// user data that cloud-init keeps: what it does at later boots needs no network then.
//
// It tries for ever: to go on without the config would let cloud-init believe that it had
// done its part for this instance.
const boothook = `#cloud-boothook
#!/usr/bin/python3
# This machine's config is in a private bucket. It is fetched as the instance's service
# account, and counts only if it has this digest.
import hashlib, json, os, time, urllib.request

TOKEN = "http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token"
OBJECT = "@OBJECT@"
SHA256 = "@SHA256@"
FILE = "/etc/cloud/cloud.cfg.d/99-kimage-config.cfg"

direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

def get(url, **headers):
    request = urllib.request.Request(url, headers={k.replace("_", "-"): v for k, v in headers.items()})
    with direct.open(request, timeout=30) as answer:
        return answer.read()

def right(data):
    return hashlib.sha256(data).hexdigest() == SHA256

def there():
    try:
        with open(FILE, "rb") as f:
            return right(f.read())
    except OSError:
        return False

def fetch():
    token = json.loads(get(TOKEN, Metadata_Flavor="Google"))["access_token"]
    data = get(OBJECT, Authorization="Bearer " + token)
    if not right(data):
        raise ValueError("it has another digest than " + SHA256)
    fd = os.open(FILE + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.rename(FILE + ".new", FILE)

def tell(text):
    print(text, flush=True)
    try:
        with open("/dev/console", "w") as console:
            console.write("kimage: " + text + "\n")
    except OSError:
        pass

pause = 1
while not there():
    try:
        fetch()
    except Exception as e:
        tell("fetching the config from %s: %s; trying again in %d s" % (OBJECT, e, pause))
        time.sleep(pause)
        pause = min(2 * pause, 30)
`

func cloudInitStub(bucket, object string, config []byte) []byte {
	u := url.URL{Scheme: "https", Host: "storage.googleapis.com", Path: "/" + bucket + "/" + object}
	return []byte(strings.NewReplacer("@OBJECT@", u.String(), "@SHA256@", sum(config)).Replace(boothook))
}
