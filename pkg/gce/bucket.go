package gce

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	storage "google.golang.org/api/storage/v1"
)

// What is the cluster's in a bucket has its ID in front: kimage/ID/ROLE/NAME for configs,
// which each role's service account may read, and kimage/ID/images/NAME, until the image
// is made of it.
func (c *Cloud) prefix(more ...string) string { return prefix(c.ID, more...) }

func prefix(clusterID string, more ...string) string {
	return strings.Join(append([]string{"kimage", clusterID}, more...), "/")
}

func (c *Cloud) bucketPath(more ...string) string {
	return "/storage/v1/b/" + strings.Join(append([]string{c.Bucket}, more...), "/")
}

func (c *Cloud) objectPath(object string) string { return c.bucketPath("o", url.PathEscape(object)) }

// ensureBucket makes the bucket if it is not there. One that is must be such that who may
// read which object can be said at all.
func (c *Cloud) ensureBucket(ctx context.Context) error {
	var b storage.Bucket
	err := c.do(ctx, call{method: http.MethodGet, path: c.bucketPath(), into: &b})
	if code(err) == http.StatusNotFound {
		uniform := &storage.BucketIamConfigurationUniformBucketLevelAccess{Enabled: true}
		return c.do(ctx, call{method: http.MethodPost, path: "/storage/v1/b", query: url.Values{"project": {c.Project}}, body: &storage.Bucket{
			Name: c.Bucket, Location: strings.ToUpper(region(c.Zone)), Labels: c.labels(),
			IamConfiguration: &storage.BucketIamConfiguration{UniformBucketLevelAccess: uniform, PublicAccessPrevention: "enforced"},
			// What is deleted is secret: it is to be gone.
			SoftDeletePolicy: &storage.BucketSoftDeletePolicy{ForceSendFields: []string{"RetentionDurationSeconds"}},
		}})
	}
	if code(err) == http.StatusForbidden {
		return fmt.Errorf("spec.platform.gce.bucket: %s belongs to somebody else, or you may not use it (names of buckets are the whole world's): %w", c.Bucket, err)
	}
	if err != nil {
		return err
	}
	if i := b.IamConfiguration; i == nil || i.UniformBucketLevelAccess == nil || !i.UniformBucketLevelAccess.Enabled {
		return fmt.Errorf("spec.platform.gce.bucket: %s has ACLs per object, which readers of one role's configs cannot be kept out by: gcloud storage buckets update gs://%s --uniform-bucket-level-access, or name a new bucket", c.Bucket, c.Bucket)
	}
	return nil
}

// object looks one up.
func (c *Cloud) object(ctx context.Context, name string) (o storage.Object, there bool, err error) {
	err = c.do(ctx, call{method: http.MethodGet, path: c.objectPath(name), into: &o})
	if code(err) == http.StatusNotFound {
		return o, false, nil
	}
	return o, err == nil, err
}

// put uploads content, unless it is there.
func (c *Cloud) put(ctx context.Context, name string, content []byte) error {
	hash := md5.Sum(content)
	want := base64.StdEncoding.EncodeToString(hash[:])
	o, there, err := c.object(ctx, name)
	if err != nil || there && o.Md5Hash == want {
		return err
	}
	return c.do(ctx, call{method: http.MethodPost, path: "/upload" + c.bucketPath("o"), query: url.Values{"uploadType": {"media"}, "name": {name}},
		media: content, what: fmt.Sprintf("%d bytes, sha256 %s", len(content), sum(content))})
}

// objects lists the cluster's.
func (c *Cloud) objects(ctx context.Context) (names []string, err error) {
	for token := ""; ; {
		query := url.Values{"prefix": {c.prefix("")}}
		if token != "" {
			query.Set("pageToken", token)
		}
		var page storage.Objects
		if err := c.do(ctx, call{method: http.MethodGet, path: c.bucketPath("o"), query: query, into: &page}); code(err) == http.StatusNotFound {
			return nil, nil // there is no bucket
		} else if err != nil {
			return nil, err
		}
		for _, o := range page.Items {
			if strings.HasPrefix(o.Name, c.prefix("")) {
				names = append(names, o.Name)
			}
		}
		if token = page.NextPageToken; token == "" {
			return names, nil
		}
	}
}

func (c *Cloud) removeObject(ctx context.Context, name string) error {
	err := c.do(ctx, call{method: http.MethodDelete, path: c.objectPath(name)})
	if code(err) == http.StatusNotFound {
		return nil
	}
	return err
}

const (
	reader        = "roles/storage.objectViewer"
	policyVersion = 3 // the first that has conditions
)

// grantTitle is that of the cluster's conditions.
func (c *Cloud) grantTitle() string { return "kimage " + c.ID }

// grants are who may read what, by role.
func (c *Cloud) grants() (out []*storage.PolicyBindings) {
	for _, r := range roles {
		if account := c.account(r); account != "" {
			out = append(out, &storage.PolicyBindings{Role: reader, Members: []string{"serviceAccount:" + account}, Condition: &storage.Expr{Title: c.grantTitle(), Description: c.description() + " " + r,
				Expression: fmt.Sprintf("resource.name.startsWith(%q)", "projects/_/buckets/"+c.Bucket+"/objects/"+c.prefix(r)+"/")}})
		}
	}
	return out
}

// setGrants makes the bucket's policy have these grants of the cluster's, and leaves all
// others as they are.
func (c *Cloud) setGrants(ctx context.Context, grants []*storage.PolicyBindings) error {
	const conflicts = 10
	for n := 1; ; n++ {
		var p storage.Policy
		err := c.do(ctx, call{method: http.MethodGet, path: c.bucketPath("iam"), query: url.Values{"optionsRequestedPolicyVersion": {fmt.Sprint(policyVersion)}}, into: &p})
		if code(err) == http.StatusNotFound && (c.DryRun != nil || len(grants) == 0) {
			err = nil // not made yet, or gone
			if len(grants) == 0 {
				return nil
			}
		}
		if err != nil {
			return err
		}
		others := slices.DeleteFunc(slices.Clone(p.Bindings), func(b *storage.PolicyBindings) bool { return b.Condition != nil && b.Condition.Title == c.grantTitle() })
		wanted := append(others, grants...)
		if same(p.Bindings, wanted) {
			return nil
		}
		p.Bindings, p.Version = wanted, policyVersion
		err = c.do(ctx, call{method: http.MethodPut, path: c.bucketPath("iam"), body: &p})
		// Another's change came between: theirs must not be undone.
		if s := code(err); (s == http.StatusPreconditionFailed || s == http.StatusConflict) && n < conflicts {
			continue
		}
		if s := code(err); s == http.StatusBadRequest && len(grants) > 0 {
			return fmt.Errorf("spec.platform.gce.serviceAccounts: all must exist (gcloud iam service-accounts create NAME --project %s): %w", c.Project, err)
		}
		return err
	}
}

// same compares bindings without regard to their order.
func same(a, b []*storage.PolicyBindings) bool {
	key := func(list []*storage.PolicyBindings) (keys []string) {
		for _, x := range list {
			condition := ""
			if x.Condition != nil {
				condition = x.Condition.Title + x.Condition.Description + x.Condition.Expression
			}
			keys = append(keys, fmt.Sprint(x.Role, slices.Sorted(slices.Values(x.Members)), condition))
		}
		slices.Sort(keys)
		return keys
	}
	return slices.Equal(key(a), key(b))
}

// removeBucket deletes the bucket if kimage made it for this cluster and nobody else's
// objects are in it.
func (c *Cloud) removeBucket(ctx context.Context) error {
	var b storage.Bucket
	err := c.do(ctx, call{method: http.MethodGet, path: c.bucketPath(), into: &b})
	if code(err) == http.StatusNotFound {
		return nil
	}
	if err != nil || !c.mine(kind{labelled: true}, found{Labels: b.Labels}) {
		return err
	}
	err = c.do(ctx, call{method: http.MethodDelete, path: c.bucketPath()})
	switch code(err) {
	case http.StatusNotFound:
		return nil
	case http.StatusConflict:
		c.Report.Logf("bucket %s stays: it holds what is not this cluster's", c.Bucket)
		return nil
	}
	return err
}
