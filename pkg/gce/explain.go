package gce

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"cloud.google.com/go/auth"
	compute "google.golang.org/api/compute/v1"
	"google.golang.org/api/googleapi"
)

const login = "run gcloud auth application-default login, or give $GOOGLE_APPLICATION_CREDENTIALS a key file that is valid"

// authentication is set if the credentials, not the API, refused.
func authentication(err error) error {
	if a, ok := errors.AsType[*auth.Error](err); ok {
		return a
	}
	if text := err.Error(); strings.Contains(text, "invalid_grant") || strings.Contains(text, "invalid_client") || strings.Contains(text, "reauth related error") {
		return err
	}
	return nil
}

var (
	permission = regexp.MustCompile(`\b(compute|storage|iam|resourcemanager|serviceusage)\.[A-Za-z]+\.[A-Za-z]+\b`)
	quota      = regexp.MustCompile(`Quota '?([A-Z0-9_]+)'? exceeded`)
)

func reason(g *googleapi.Error) string {
	if len(g.Errors) > 0 {
		return g.Errors[0].Reason
	}
	return ""
}

// explain makes of an API's error what a person can act on.
func (c *Cloud) explain(r call, err error) error {
	at := r.path
	for _, prefix := range []string{"/compute/v1/projects/" + c.Project + "/", "/storage/v1/", "/upload/storage/v1/"} {
		at = strings.TrimPrefix(at, prefix)
	}
	g, ok := errors.AsType[*googleapi.Error](err)
	if !ok {
		if a := authentication(err); a != nil {
			return fmt.Errorf("Google does not accept the credentials (expired or revoked): %s: %w", login, a)
		}
		return fmt.Errorf("%s %s: %w", r.method, at, err)
	}
	text := strings.TrimSpace(g.Message)
	if text == "" {
		text = strings.TrimSpace(g.Body)
	}
	why := ""
	switch {
	case g.Code == http.StatusUnauthorized:
		why = "Google does not accept the credentials (expired or revoked): " + login
	case reason(g) == "accessNotConfigured" || strings.Contains(text, "SERVICE_DISABLED"):
		api := "compute.googleapis.com"
		if !strings.HasPrefix(r.path, "/compute/") {
			api = "storage.googleapis.com"
		}
		why = fmt.Sprintf("the API is off in project %s: gcloud services enable %s --project %s", c.Project, api, c.Project)
	case quota.MatchString(text) || reason(g) == "quotaExceeded":
		why = tellQuota(text)
	case g.Code == http.StatusForbidden:
		if p := permission.FindString(text); p != "" {
			why = fmt.Sprintf("the credentials lack the permission %s: have the owner of project %s grant a role that has it (%s)", p, c.Project, role(p))
		} else {
			why = fmt.Sprintf("the credentials lack a permission in project %s: have its owner grant roles/compute.admin and roles/storage.admin", c.Project)
		}
	case g.Code == http.StatusConflict:
		why = "the name is taken"
	}
	if why == "" {
		return fmt.Errorf("%s %s: %s (%d): %w", r.method, at, text, g.Code, errAPI{g})
	}
	return fmt.Errorf("%s: %s %s: %s: %w", why, r.method, at, text, errAPI{g})
}

// errAPI keeps an API's error for code, and out of the text that tells it already.
type errAPI struct{ g *googleapi.Error }

func (e errAPI) Error() string { return fmt.Sprintf("HTTP %d", e.g.Code) }
func (e errAPI) Unwrap() error { return e.g }

// role is a predefined one with a permission.
func role(permission string) string {
	switch {
	case permission == "iam.serviceAccounts.actAs":
		return "roles/iam.serviceAccountUser"
	case strings.HasPrefix(permission, "storage."):
		return "roles/storage.admin"
	}
	return "roles/compute.admin"
}

func tellQuota(text string) string {
	what := "a quota"
	if m := quota.FindStringSubmatch(text); m != nil {
		what = "the quota " + m[1]
	}
	return what + " is exhausted: ask for more (console: IAM & Admin, Quotas), or use fewer or smaller machines or another region"
}

// code is the status of an API's error; 0: it is none.
func code(err error) int {
	if g, ok := errors.AsType[*googleapi.Error](err); ok {
		return g.Code
	}
	return 0
}

// failed is the error of an operation that ended with one.
func failed(op *compute.Operation, what string) error {
	if op.Error == nil || len(op.Error.Errors) == 0 {
		if op.HttpErrorStatusCode >= 400 {
			return fmt.Errorf("%s: %s (%d)", what, op.HttpErrorMessage, op.HttpErrorStatusCode)
		}
		return nil
	}
	e := op.Error.Errors[0]
	switch {
	case strings.Contains(e.Code, "QUOTA") || quota.MatchString(e.Message):
		return fmt.Errorf("%s: %s: %s", what, tellQuota(e.Message), e.Message)
	case strings.Contains(e.Code, "RESOURCE_POOL_EXHAUSTED"):
		return fmt.Errorf("%s: Google has no such machine free: take another zone (machine.gce.zone) or type (machine.gce.machineType), or try later: %s", what, e.Message)
	}
	return fmt.Errorf("%s: %s (%s)", what, e.Message, e.Code)
}
